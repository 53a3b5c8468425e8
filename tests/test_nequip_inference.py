"""Radial networks once per pair; with frozen parameters inside the convolution."""

from functools import lru_cache

import pytest
import torch
from nequip_cases import (
    CONFIGS,
    build,
    force_loss_gradients,
    outputs,
    relative_error,
    structures,
)

import fastmlip
from fastmlip.integrations.nequip import edges, interaction_block

pytestmark = pytest.mark.usefixtures("nequip_state")

BOUND = {"float64": 1e-10, "float32": 1e-5}
CASES = [
    pytest.param(
        config, dtype, id=f"{config}-{dtype}",
        marks=[pytest.mark.slow] if config in ("L", "XL", "l4 parity") else [],
    )
    for config in CONFIGS
    for dtype in BOUND
]  # fmt: skip


def frozen(config, dtype="float64", **more):
    return fastmlip.accelerate(build(config, dtype, **more)).requires_grad_(False)


@lru_cache(maxsize=1)
def data():
    return structures()


def assert_same_outputs(got, want, bound):
    sizes = want["atomic_energy"].abs().sum()
    for name, reference in want.items():
        assert got[name].dtype == reference.dtype
        scale = sizes if name == "total_energy" else None
        assert relative_error(got[name], reference, scale) <= bound, name


@pytest.mark.parametrize(("config", "dtype"), CASES)
def test_outputs_match_stock(config, dtype):
    stock, fast = build(config, dtype), frozen(config, dtype)
    for frame in data().values():
        assert_same_outputs(outputs(fast, frame), outputs(stock, frame), BOUND[dtype])


@pytest.mark.parametrize("depth", [0, 2, 3])
def test_radial_networks_of_any_depth(depth, monkeypatch):
    calls = []
    kernel = fastmlip.ops.radial_conv
    monkeypatch.setattr(
        fastmlip.ops, "radial_conv", lambda *operands: calls.append(operands) or kernel(*operands)
    )
    stock, fast = (make("tiny", "float64", radial_mlp_depth=depth) for make in (build, frozen))
    for frame in data().values():
        assert_same_outputs(outputs(fast, frame), outputs(stock, frame), BOUND["float64"])
    assert calls and all((call[-1] is None) == (depth == 0) for call in calls)


def operators_of(run):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        run()
    prefix = "fastmlip::"
    return {e.key.removeprefix(prefix) for e in seen.key_averages() if e.key.startswith(prefix)}


def test_which_operators_run():
    """Rows of the radial network are made inside the convolution where its parameters are frozen,
    and gradients of parameters in training alone."""
    model, frame = frozen("tiny"), data()["bulk"]
    fused = {"radial_conv_cpu", "radial_conv_backward_cpu"}
    assert fused <= operators_of(lambda: outputs(model, frame))
    next(model.parameters()).requires_grad_()  # the type embedding is no part of a block
    assert fused <= operators_of(lambda: outputs(model, frame))
    model.requires_grad_()
    found = operators_of(lambda: outputs(model, frame))
    assert {"pair_linear_cpu", "pair_linear_dx_cpu", "irreps_linear_cpu"} <= found
    assert not {name for name in found if "dweight" in name or name in fused}
    found = operators_of(lambda: force_loss_gradients(model, frame))
    assert {"pair_linear_dweight_cpu", "irreps_linear_dweight_cpu"} <= found
    with torch.autocast("cpu", torch.bfloat16):
        assert not {n for n in operators_of(lambda: outputs(model, frame)) if "linear" in n}


def test_pairs_are_found_and_leave_nothing_in_the_output(monkeypatch):
    found = []
    find = fastmlip.ops.edge_pair
    monkeypatch.setattr(
        fastmlip.ops, "edge_pair", lambda *operands: found.append(find(*operands)) or found[-1]
    )
    for name, frame in data().items():
        fast = frozen("tiny")
        found.clear()  # of the self-check
        out = fast(dict(frame))
        assert not [key for key in out if "fastmlip" in key]
        pair = found.pop()
        assert not found  # one search for all layers
        if name != "lone atom":
            assert (pair != torch.arange(len(pair))).sum() * 2 == len(pair)


@pytest.mark.parametrize("config", ["S", "l2 5-2-7 parity"])
def test_trainable_parameters_keep_their_gradients(config):
    stock, fast = build(config, "float64"), fastmlip.accelerate(build(config, "float64"))
    frame = data()["own images"]
    want, got = force_loss_gradients(stock, frame), force_loss_gradients(fast, frame)
    for name, reference in want.items():
        assert relative_error(got[name], reference) <= 1e-10, name


@pytest.mark.parametrize("config", ["M", "l3 parity"])
def test_forces_and_hessian(config):
    """Forces are the gradient of the energy; the Hessian is symmetric, and stock's."""
    frame = data()["own images"]
    directions = torch.randn(
        (3, *frame["pos"].shape), generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    products = []
    for model in (build(config, "float64"), frozen(config)):
        model.train()  # keeps the graph of the forces
        pos = frame["pos"].clone().requires_grad_()
        forces = model({**frame, "pos": pos})["forces"]
        products.append(
            torch.stack(
                [
                    torch.autograd.grad((forces * d).sum(), pos, retain_graph=True)[0]
                    for d in directions
                ]
            )
        )
        model.eval()
    assert relative_error(products[1], products[0]) < 1e-10
    hessian = products[1].flatten(1) @ directions.flatten(1).T
    assert relative_error(hessian, hessian.T) < 1e-10
    step = 2e-5
    energies = [
        model({**frame, "pos": frame["pos"] + sign * step * directions[0]})["total_energy"].sum()
        for sign in (1, -1)
    ]
    slope = -(model(dict(frame))["forces"] * directions[0]).sum()
    assert relative_error((energies[0] - energies[1]) / (2 * step), slope) < 1e-6


def test_cutoffs_that_depend_on_the_order_of_types():
    cutoffs = {"Na": {"Na": 2.6, "Cl": 3.4, "O": 3.6}, "Cl": {"Na": 3.0}, "O": 3.1}
    more = {"per_edge_type_cutoff": cutoffs}
    stock, fast = build("tiny", "float64", **more), frozen("tiny", **more)
    for frame in data().values():
        assert_same_outputs(outputs(fast, frame), outputs(stock, frame), 1e-10)


def test_one_sided_and_shuffled_edges():
    frame = dict(data()["bulk"])
    edges = frame["edge_index"].shape[1]
    order = torch.randperm(edges, generator=torch.Generator().manual_seed(0))
    for chosen in (order, order[: edges // 3], torch.nonzero(frame["edge_index"][0] % 2)[:, 0]):
        part = frame | {
            "edge_index": frame["edge_index"][:, chosen],
            "edge_cell_shift": frame["edge_cell_shift"][chosen],
        }
        stock, fast = build("l2 5-2-7", "float64"), frozen("l2 5-2-7")
        assert_same_outputs(outputs(fast, part), outputs(stock, part), 1e-10)


def test_the_self_connection_is_folded_and_the_same():
    model = fastmlip.accelerate(build("S", "float64"))
    _, path, _ = model.model.func.what_is_shared()
    embed = model.model.func.get_submodule(path)
    blocks = [m for m in model.modules() if isinstance(m, interaction_block.FastInteractionBlock)]
    folded = [block for block in blocks if interaction_block.folds(block, embed)]
    assert folded
    types = torch.arange(12) % 3
    for block in folded:
        attrs = embed.embed_module.weight[types]
        x = torch.randn(12, block.sc.irreps_in1.dim, dtype=torch.float64)
        data = {"atom_types": types, edges.SHARED: edges.Shared(embed, pairs=False)}
        got = interaction_block.self_connection(block, x, data)
        assert relative_error(got.detach(), block.sc(x, attrs).detach()) < 1e-12


def test_an_unknown_radial_network_is_kept_with_a_reason():
    model = build("tiny", "float64")
    for module in model.modules():
        if type(module).__name__ == "InteractionBlock":
            module.edge_mlp.mlp.append(torch.nn.Identity())
    with pytest.warns(UserWarning, match="not layers with activations between them"):
        fast = fastmlip.accelerate(model)
    frame = data()["bulk"]
    assert_same_outputs(outputs(fast, frame), outputs(build("tiny", "float64"), frame), 1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_autocast_is_the_same_for_all_forms(dtype):
    """It leaves float64 alone; stock in float32 raises, and so does what is made of it."""
    frame = data()["bulk"]
    forms = {
        "stock": build("tiny", dtype),
        "exact": fastmlip.accelerate(build("tiny", dtype)),
        "frozen": fastmlip.accelerate(build("tiny", dtype).requires_grad_(False)),
        "tabulated": fastmlip.tabulate(build("tiny", dtype), tol=1e-3),
    }
    for name, model in forms.items():
        want = outputs(model, frame)
        with torch.autocast("cpu", torch.bfloat16):
            if dtype == "float32":
                with pytest.raises(RuntimeError, match=r"same dtype|under torch\.autocast"):
                    outputs(model, frame)
                continue
            got = outputs(model, frame)
        assert relative_error(got["forces"], want["forces"]) < 1e-13, name
