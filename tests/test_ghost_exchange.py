"""ghost_exchange against plain indexing, in a world of one process whose ghosts are images."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from fastmlip import ops
from fastmlip.ops.ghost_exchange import _library, _Rows, images
from fastmlip.testing.compare import assert_close, derivatives


def plain(features, owner):
    return torch.cat([features, features[torch.as_tensor(owner, dtype=torch.long)]])


def energy(features, owner, exchange):
    """As a layer and its readout: nonlinear, and different for each row."""
    rows = exchange(torch.tanh(features))
    weight = torch.arange(1, rows.numel() + 1, dtype=rows.dtype).view_as(rows) / rows.numel()
    return (rows.square() * weight).sum(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("owner", [[2, 0, 2, 2, 1], [], [3]])
def test_derivatives_are_those_of_indexing(dtype, owner):
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    with images(owner) as calls:
        got = derivatives(
            lambda x: energy(x, owner, lambda r: ops.ghost_exchange(r, len(owner))), (features,)
        )
    want = derivatives(lambda x: energy(x, owner, lambda r: plain(r, owner)), (features.double(),))
    assert {"forward", "reverse"} == {kind for kind, _ in calls}
    for one, other in zip(got, want, strict=True):
        assert_close(one.value, other.value, one.order, one.name)


def test_columns_and_strides():
    owner = [1, 1]
    for x in (torch.randn(5, 4).mT, torch.randn(4, 6)[:, ::2], torch.randn(3, 0), torch.ones(2, 1)):
        with images(owner):
            assert torch.equal(ops.ghost_exchange(x, 2), plain(x, owner))


def test_a_rank_without_atoms_takes_part():
    with images([]) as calls:
        assert ops.ghost_exchange(torch.empty(0, 3), 0).shape == (0, 3)
    assert calls == [("forward", 3)]


def force(features, other):
    """Gradient inside a graph; ``other`` says by its rows how many ghosts there are."""
    features = features.detach().requires_grad_()
    total = energy(features, None, lambda r: ops.ghost_exchange(r, other.shape[0])).sum()
    return torch.autograd.grad(total, features)[0]


def test_graphs_of_several_sizes(tmp_path):
    """make_fx with symbolic sizes, torch.compile, and AOTInductor, of which no one sees 5 and 3."""
    owner, few = [0, 4, 2], [1, 1, 0, 0, 2, 3, 3]
    x, y = torch.randn(5, 4), torch.randn(6, 4)
    ghosts = torch.empty(3, 1), torch.empty(7, 1)
    with images(owner):
        graph = make_fx(force, tracing_mode="symbolic")(x, ghosts[0])
        local, halo = torch.export.Dim("local"), torch.export.Dim("halo")
        exported = torch.export.export(
            graph, (x, ghosts[0]), dynamic_shapes=({0: local}, {0: halo})
        )
        path = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(tmp_path / "model.pt2")
        )
        compiled = torch._inductor.aoti_load_package(path)
        dynamic = torch.compile(graph, dynamic=True, fullgraph=True)
    for data, where in (((x, ghosts[0]), owner), ((y, ghosts[1]), few)):
        leaf = data[0].clone().requires_grad_()
        want = torch.autograd.grad(energy(leaf, where, lambda r, w=where: plain(r, w)).sum(), leaf)
        with images(where) as calls:
            for run in (graph, compiled, dynamic):
                assert_close(run(*data), want[0].double())
        assert calls == [("forward", 4), ("reverse", 4)] * 3


def test_nobody_is_registered():
    with pytest.raises(RuntimeError, match="nobody is registered that exchanges rows of ghost"):
        ops.ghost_exchange(torch.zeros(2, 3), 1)
    failing = _Rows(lambda *_: 1)
    _library().fastmlip_set_ghost_world(failing, failing, None)
    try:
        with pytest.raises(RuntimeError, match="of ghost atoms failed"):
            ops.ghost_exchange(torch.zeros(2, 3), 1)
    finally:
        _library().fastmlip_set_ghost_world(None, None, None)


@pytest.mark.parametrize(
    ("features", "ghosts", "error", "message"),
    [
        (torch.zeros(3), 0, ValueError, r"features: expected shape \[L, C\], got \(3,\)"),
        (torch.zeros(3, 1, dtype=torch.int64), 0, TypeError, "features: expected float32 or fl"),
        (torch.zeros(3, 1), -1, RuntimeError, "num_ghost: expected 0 or more, got -1"),
        (torch.zeros(3, 1, device="meta"), 1, RuntimeError, "runs on cpu tensors, got one on meta"),
    ],
)
def test_bad_arguments(features, ghosts, error, message):
    with images([0]), pytest.raises(error, match=message):
        ops.ghost_exchange(features, ghosts)
