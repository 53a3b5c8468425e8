"""One variant of each kernel for all sizes, and the same ahead of time as in a launch."""

import pytest
import torch

from fastmlip import backend
from fastmlip.gpu.targets import TARGETS

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(backend.interpreting(), reason="the interpreter compiles nothing")
import triton.language as tl  # noqa: E402
from inductor import hopper  # noqa: E402

from fastmlip.gpu import passes as found  # noqa: E402
from fastmlip.gpu.code import variant  # noqa: E402
from fastmlip.kernels._run import Call, recorded, run  # noqa: E402

# nodes and edges: one, odd, even, multiples of 16, none
SIZES = [(7, 301), (1, 1), (2, 1), (6, 10), (5, 32), (16, 33), (48, 64), (3, 0), (9, 1024)]
AMD = "gfx942"  # with other attributes: sizes of memory


def key(call, target="sm_90"):
    options, signature, constants, attributes = variant(call, TARGETS[target])
    return str((call.kernel, options, signature, constants, attributes))


def launches(operator, nodes, edges, monkeypatch, start=0):
    """The launches of all derivative orders on memory of a CPU, which begins ``start`` elements
    after a multiple of 16 bytes."""

    def zeros(device, *shape, dtype):
        return torch.zeros(torch.Size(shape).numel() + start, dtype=dtype)[start:].view(shape)

    for name, value in (("NODES", nodes), ("EDGES", edges), ("_empty", zeros)):
        monkeypatch.setattr(found, name, value)
    (case,) = found.SHOWN[operator]
    return [call for one in found.passes(operator, case, device="cpu") for call in one.calls]


@pytest.mark.parametrize("target", ["sm_90", AMD])
@pytest.mark.parametrize("operator", found.SHOWN)
def test_one_variant_for_all_sizes_and_addresses(operator, target, monkeypatch):
    seen = [
        [key(call, target) for call in launches(operator, *sizes, monkeypatch, start)]
        for sizes in SIZES for start in (0, 1)
    ]  # fmt: skip
    for each in zip(*seen, strict=True):
        assert len(set(each)) == 1, f"{operator}: {set(each)}"


def test_what_is_not_named_has_variants():
    """What Triton does by itself, so that the test above can fail."""

    @triton.jit
    def plain(out, size, BLOCK: tl.constexpr):
        tl.store(out + tl.arange(0, BLOCK), size)

    out = torch.empty(65)
    calls = [
        Call(plain, (1,), operands, {"BLOCK": 32}, 32)
        for operands in ((out, 1), (out, 16), (out, 5), (out[1:], 5), (out, 7))
    ]
    assert len({key(call) for call in calls}) == 4


def test_floats_are_aligned_and_other_operands_are_taken_as_they_are():
    floats, numbers = torch.arange(9.0), torch.arange(9)
    with recorded() as calls:
        run(None, (1,), floats[4:], floats[1:], numbers[1:], None, 3, lanes=32)
    same, moved, index, none, size = calls[0].operands
    assert same.data_ptr() == floats[4:].data_ptr() and (none, size) == (None, 3)
    assert moved.data_ptr() % 16 == 0 and torch.equal(moved, floats[1:])
    assert index.data_ptr() == numbers[1:].data_ptr()


@pytest.mark.parametrize("operator", found.SHOWN)
def test_ahead_of_time_is_what_a_launch_compiles(operator, monkeypatch):
    """Triton's own launch, stopped where it would compile."""
    asked = []

    def hook(key, repr, fn, compile, **_):
        asked.append((compile["signature"], compile["constants"], compile["configs"][0]))
        return True

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", hook)
    with hopper():
        for call in launches(operator, 7, 300, monkeypatch):
            options = {"num_warps": max(call.lanes // 32, 1), "num_stages": 1}
            call.kernel.run(
                *call.operands, grid=call.grid, warmup=True, **call.constants, **options
            )
            assert asked.pop() == variant(call, TARGETS["sm_90"])[1:]
