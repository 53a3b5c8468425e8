"""Every GPU kernel compiled ahead of time, without a GPU: what its code says of itself.

``fastmlip.gpu`` notes the launches that operators make and compiles them: what is compiled is what
would run.
"""

import math
import re

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmlip import backend
from fastmlip.gpu.targets import TARGETS
from fastmlip.testing import OPERATORS

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(backend.interpreting(), reason="the interpreter compiles nothing")

from fastmlip.gpu.code import compiled  # noqa: E402
from fastmlip.gpu.passes import EDGES, NODES, SWEEP, passes  # noqa: E402
from fastmlip.kernels import _run  # noqa: E402

F32, F64 = torch.float32, torch.float64
SLICE = [
    ("tensor_product_conv", "nequip-M-hidden", "sm_90"),
    ("tensor_product_conv", "nequip-S-hidden", "sm_100"),
    ("tensor_product_conv", "nequip-S-hidden", "gfx942"),
    ("radial_conv", "nequip-M-hidden", "sm_90"),
    ("radial_conv", "nequip-S-hidden", "gfx942"),
    ("edge_embedding", "nequip-M", "sm_90"),
    ("edge_embedding", "nequip-S", "gfx90a"),
    ("zbl", "per-type cutoffs", "sm_80"),
    ("scale_shift", "per type", "sm_120"),
    ("scale_shift", "scales of types, one shift", "gfx942"),
    ("env_sum", "l_max 3", "sm_90"),
    ("env_sum", "l_max 2", "gfx90a"),
    ("contraction", "l_max 2, 64 channels", "sm_90"),
    ("contraction", "l_max 2, last layer", "gfx942"),
    ("spline", "16 pairs of types", "sm_80"),
    ("symmetric_contraction", "mace medium", "sm_90"),
    ("symmetric_contraction", "unused inputs and outputs", "gfx942"),
    ("edge_vectors", "sorted", "sm_90"),
    ("gate", "both parities", "sm_90"),
    ("gate", "nequip-M", "gfx942"),
    ("irreps_linear", "several paths to a block", "sm_90"),
    ("irreps_linear", "nequip-M, self-connection", "sm_90"),
    ("irreps_linear", "nequip-M, linear_2", "gfx942"),
]
# whose programs take a block of the channels, or of the columns
OF_CHANNELS = {
    "tensor_product_conv",
    "radial_conv",
    "env_sum",
    "contraction",
    "spline",
    "symmetric_contraction",
    "gate",
    "irreps_linear",
}
ARITHMETIC_F32 = re.compile(r"\b(?:add|sub|mul|fma|div|mad)[.a-z]*\.f32|\bv_(?:fma|mul|add)\w*_f32")


def check(operator, case, target, dtype=F32):
    """Nothing spills, nothing is atomic, offsets of nodes and edges are 64 bits wide, and what is
    to be computed in float64 is."""
    for one in passes(operator, case, dtype):
        for call in one.calls:
            code = compiled(call, TARGETS[target])
            where = f"{one.name} for {target}, {code.registers} registers"
            assert code.spilled == 0, f"{where}: {code.spilled} bytes of a lane are spilled"
            assert code.atomics == 0, f"{where}: atomics"
            assert 0 < code.occupancy <= 1 and sum(code.instructions.values()) > 10, where
            assert code.instructions["local"] == 0, f"{where}: a stack"
            assert_wide(code.ttir, where, operator in OF_CHANNELS)
            if one.double:
                rounded = [x for x in constants(code.ttir) if is_rounded(x)]
                assert not rounded, f"{where}: rounded to float32: {rounded}"
                narrow = ARITHMETIC_F32.findall(code.assembly)
                assert not narrow, f"{where}: float32 arithmetic in float64: {set(narrow)}"


def constants(ttir):
    """Numbers of the kernel, in float32 and in float64."""
    found = re.findall(r"arith\.constant (?:dense<)?(-?\d\.\d+[eE][+-]\d+)>? : \S*f(?:32|64)", ttir)
    return {float(x) for x in found}


def is_rounded(x):
    """Whether a number has the digits of float32, and more than people write by hand: Triton rounds
    those of Python where it compares."""
    digits = int(math.frexp(x)[0] * 2**53)
    return digits % 2**29 == 0 and digits % 2**37 != 0


def test_a_rounded_number_is_seen():
    text = "%c = arith.constant dense<9.9999997473787516E-5> : tensor<32xf64>"
    assert [is_rounded(x) for x in constants(text)] == [True]
    assert not any(
        map(is_rounded, (1e-4, 0.5, 3.141592653589793, 1 / 3, -56.0, 0.3183098861837907))
    )


def assert_wide(ttir, where, channels_are_narrow):
    """A program's number along x is widened before anything else; products are of 64 bits, but for
    those of channels, which the irreps bound."""
    for number in re.findall(r"(%\w+) = tt.get_program_id x", ttir):
        uses = re.findall(rf"= (\S+) [^\n]*{number}\b(?!\w)", ttir)
        assert set(uses) <= {"arith.extsi"}, f"{where}: {number} is used by {uses}"
    scalars = re.findall(r"arith\.muli .*: i32", ttir)
    assert len(scalars) <= channels_are_narrow, f"{where}: 32-bit products {scalars}"
    if not channels_are_narrow:
        assert not re.search(r"arith\.muli .*: tensor<\w+xi32>", ttir), f"{where}: 32-bit products"


@pytest.mark.parametrize(("operator", "case", "target"), SLICE)
def test_kernels_compile_without_spills_or_atomics(operator, case, target):
    check(operator, case, target)


@pytest.mark.parametrize(
    ("operator", "case"),
    [("tensor_product_conv", "nequip-S-last"), ("radial_conv", "nequip-S-last"),
     ("edge_embedding", "pairs-of-types"),
     ("scale_shift", "per type"), ("env_sum", "l_max 2"), ("contraction", "l_max 2, last layer"),
    ("spline", "odd"), ("symmetric_contraction", "mace medium"), ("gate", "both parities"),
    ("irreps_linear", "nequip-M, self-connection"),
     pytest.param("zbl", "normed lengths", marks=pytest.mark.slow)],
)  # fmt: skip
def test_float64_models(operator, case):
    check(operator, case, "sm_90", F64)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("operator", "case"), [(o, c) for o, names in SWEEP.items() for c in names]
)
def test_every_kernel_on_every_target(operator, case, target):
    check(operator, case, target)


@pytest.mark.parametrize("operator", SWEEP)
def test_only_the_first_axis_of_a_grid_grows_with_nodes_and_edges(operator):
    for case in SWEEP[operator]:
        for call in (call for one in passes(operator, case) for call in one.calls):
            constants = call.constants
            assert len(call.grid) <= 2
            along_x = {NODES, EDGES, *(-(-EDGES // b) for b in (32, 64)), 1}
            if operator == "symmetric_contraction":  # rows of nodes, or terms of types
                row = OPERATORS[operator].cases[case]
                problem, terms = row.problem, row.types * len(row.problem.terms)
                along_x = {NODES * problem.inputs, NODES * problem.outputs, terms}
            assert call.grid[0] in along_x | {-(-NODES // constants.get("ROWS", 1))}
            if len(call.grid) == 2:
                if call.kernel.__name__ == "_pack_kernel":
                    assert call.grid[1] == len(constants["TABLE"]) < 65536
                    continue
                if operator in ("gate", "irreps_linear"):  # blocks of all irreps
                    assert 1 <= call.grid[1] < 64
                    continue
                if operator == "spline":
                    along, block = constants["COLUMNS"], constants["BLOCK"]
                else:
                    along, block = constants.get("MUL", constants.get("U")), constants["BLOCK_U"]
                assert call.grid[1] == -(-along // block) < 65536


@pytest.mark.parametrize("case", ["nequip-XL-hidden", "mace-medium", "nequip-L-first"])
def test_tensor_products_write_every_path_once(case):
    problem = OPERATORS["tensor_product_conv"].cases[case].problem
    blocks = {p.in1_offset for p in problem.paths}
    for one in passes("tensor_product_conv", case)[:2]:
        calls = [call for call in one.calls if "MUL" in call.constants]
        assert len(blocks) <= len(calls) <= 2 * len(blocks), "a launch or two for each block"
        assert len(one.calls) - len(calls) <= 1, "rows are packed by one launch"
        tables = [call.constants["TABLE"] for call in calls]
        weights = [path[2] for table in tables for *_, paths in table for path in paths]
        assert sorted(weights) == sorted(p.weight_offset for p in problem.paths)


def in_loop(ttir):
    """Loads and stores of the loop over edges, in their order."""
    body = ttir[ttir.index("scf.for") :]
    body = body[: body.index("\n    }")]
    return re.findall(r"tt\.(load|store) ([^:]*):", body)


@pytest.mark.parametrize("case", ["nequip-M-hidden", "nequip-S-hidden"])
def test_all_loads_of_an_edge_come_before_its_stores(case):
    """Triton's pointers may alias: a load cannot move up past a store, and would wait once more."""
    loops = 0
    for one in passes("tensor_product_conv", case):
        for call in one.calls:
            ttir = compiled(call, TARGETS["sm_90"]).ttir
            if "scf.for" in ttir:
                kinds = [kind for kind, _ in in_loop(ttir)]
                assert kinds == sorted(kinds), f"{one.name}: {kinds}"
                loops += 1
    assert loops > 2


@pytest.mark.parametrize(
    ("case", "is_masked"), [("nequip-M-hidden", False), ("odd-multiplicities", True)]
)
def test_channels_are_masked_only_where_blocks_are_not_full(case, is_masked):
    backward = passes("tensor_product_conv", case)[1].calls[-1]
    loop = in_loop(compiled(backward, TARGETS["sm_90"]).ttir)
    found = {"," in operands for kind, operands in loop if kind == "load"}
    assert (True in found) == is_masked


class Launches(TorchDispatchMode):
    """Operators of torch that run a kernel."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty")):
            self.names.append(name)
        return result


@pytest.mark.parametrize("case", ["nequip-M-hidden", "nequip-L-hidden"])
def test_a_tensor_product_launches_little_beside_its_kernels(case):
    """Rows are packed by one kernel, and partial sums are not filled with zeros."""
    with Launches() as seen:
        passes("tensor_product_conv", case)
    assert seen.names == ["sum", "sum"], "of the parts of the gradients of edge_attr"


# ---------------------------------------------------------------- device, stream, synchronisation


class OneDevice(TorchDispatchMode):
    """Nothing leaves the GPU or comes to it: a copy or a value read by the host would wait."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        assert {t.device.type for t in tensors} <= {"cuda"}, f"{func} goes between devices"
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "masked_select"), name
        self.seen += 1
        return result


@pytest.mark.parametrize("operator", SWEEP)
def test_launchers_neither_synchronise_nor_copy_between_devices(operator):
    for case in SWEEP[operator]:
        passes(operator, case)  # coefficients are made once, as numbers
        with FakeTensorMode(), OneDevice() as watch:
            found = passes(operator, case, device="cuda")
        assert watch.seen and all(one.calls for one in found)


def test_the_watch_sees_copies_and_values_that_are_read():
    with FakeTensorMode() as mode:
        x, host = torch.empty(3, device="cuda"), torch.empty(3)
        with mode, OneDevice(), pytest.raises(AssertionError, match="between devices"):
            host.to("cuda")
        with mode, OneDevice(), pytest.raises(Exception, match="_local_scalar_dense"):
            x.sum().item()


def test_launches_go_to_the_device_of_the_operands(monkeypatch):
    entered = []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append("left")

    class Kernel:
        def __getitem__(self, grid):
            return lambda *operands, **constants: entered.append((grid, constants))

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", Device)
    with FakeTensorMode():
        x = torch.empty(3, device="cuda:3")
        _run.run(Kernel(), (5,), None, x, lanes=2 * _run.WARP, N=4)
    launched = ((5,), {"N": 4, "num_warps": 2, "num_stages": 1})
    assert entered == [torch.device("cuda:3"), launched, "left"]
