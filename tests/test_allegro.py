"""Allegro's models with fastmlip against the same models without: outputs, training gradients."""

import copy
import functools
import warnings

import pytest
import torch
from nequip.data import AtomicDataDict
from nequip.model import modify
from nequip.scripts._compile_utils import ASE_TARGET
from nequip.utils.aot import aot_export_model
from nequip_cases import (
    COMMON,
    force_loss_gradients,
    outputs,
    rattled,
    relative_error,
    structures,
    to_data,
)

import fastmlip

pytest.importorskip("allegro")
from allegro._compile import PAIR_ALLEGRO_TARGET

pytestmark = pytest.mark.usefixtures("nequip_state")

SMALL = {
    "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4},
    "l_max": 2, "parity": False, "num_layers": 2, "num_scalar_features": 8,
    "num_tensor_features": 16, "allegro_mlp_hidden_layers_width": 8,
    "readout_mlp_hidden_layers_width": 8, "scalar_embed_mlp_hidden_layers_width": 8,
}  # fmt: skip
SPLINE = {"_target_": "allegro.nn.TwoBodySplineScalarEmbed", "num_splines": 6, "spline_span": 4}
MODELS = {
    "l2": {},
    "l2 parity, 3 layers": {"parity": True, "num_layers": 3, "num_tensor_features": 5},
    "l1, one layer": {"l_max": 1, "num_layers": 1, "num_tensor_features": 1},
    "l3, 4 layers": {"l_max": 3, "num_layers": 4, "num_tensor_features": 4},
    "paths for all channels": {"tp_path_channel_coupling": False, "num_tensor_features": 33},
    "deep latents": {"allegro_mlp_hidden_layers_depth": 3},
    "linear latents": {"allegro_mlp_hidden_layers_depth": 0},
    "splines": {"radial_chemical_embed": SPLINE},
    "neighbours by type": {"avg_num_neighbors": {"Na": 9.0, "Cl": 12.0, "O": 15.0}},
    "cutoffs of pairs": {"per_edge_type_cutoff": {"Na": 3.0, "Cl": {"O": 2.5}}},
}
BOUND = {"float64": 1e-10, "float32": 1e-5}


def build(name, dtype, **more):
    from allegro.model import AllegroModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kwargs = {**COMMON, **SMALL, **MODELS[name], "model_dtype": dtype, **more}
        return AllegroModel(**kwargs).eval()


def swapped(model):
    return {row.module for row in fastmlip.summary(model) if row.status == "swapped"}


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_training_gradients(name, dtype):
    stock, fast = build(name, dtype), fastmlip.accelerate(build(name, dtype))
    assert {"FastAllegro", "FastTensorEmbed", "FastScalarMLP"} <= swapped(fast)
    assert list(fast.state_dict()) == list(stock.state_dict())
    for case in ("batch", "lone atom"):
        data = structures()[case]
        for of in (outputs, force_loss_gradients):
            want, got = of(stock, data), of(fast, data)
            scale = max(t.abs().max() for t in want.values())
            for key, reference in want.items():
                error = relative_error(got[key], reference, scale=reference.abs().max().clamp_min(
                    1e-3 * scale))  # fmt: skip
                assert error <= BOUND[dtype], f"{case}, {key}: {error}"


def test_edges_in_any_order_and_ghosts():
    """Rows of atoms that are no centre, as LAMMPS adds them, and edges in a random order."""
    stock, fast = build("l2", "float64"), fastmlip.accelerate(build("l2", "float64"))
    data = to_data(rattled(2))
    shuffled = torch.randperm(data["edge_index"].shape[1], generator=torch.manual_seed(5))
    data["edge_index"] = data["edge_index"][:, shuffled]
    data["edge_cell_shift"] = data["edge_cell_shift"][shuffled]
    keep = data["edge_index"][0] < 5
    data["edge_index"], data["edge_cell_shift"] = (
        data["edge_index"][:, keep], data["edge_cell_shift"][keep]
    )  # fmt: skip
    want, got = outputs(stock, data), outputs(fast, data)
    for key, reference in want.items():
        assert relative_error(got[key], reference) <= 1e-10, key


def test_forces_by_finite_differences():
    model = fastmlip.accelerate(build("l2 parity, 3 layers", "float64"))
    data = to_data(rattled())
    forces, step = outputs(model, data)["forces"], 1e-5
    for atom, axis in ((0, 0), (2, 1)):
        energies = []
        for sign in (1, -1):
            moved = {**data, "pos": data["pos"].clone()}
            moved["pos"][atom, axis] += sign * step
            energies.append(outputs(model, moved)["total_energy"].item())
        slope = -(energies[0] - energies[1]) / (2 * step)
        assert abs(slope - forces[atom, axis].item()) <= 1e-6 * forces.abs().max().item() + 1e-8


def test_the_operators_are_what_runs(monkeypatch):
    calls = []
    for name in ("env_sum", "contraction", "scalar_mlp"):
        op = getattr(fastmlip.ops, name)
        monkeypatch.setattr(
            fastmlip.ops, name, lambda *a, op=op, name=name: calls.append(name) or op(*a)
        )
    model = fastmlip.accelerate(build("l2", "float64"))
    calls.clear()
    outputs(model, to_data(rattled()))
    layer = ["env_sum", "contraction", "scalar_mlp"]
    # embedding, its two projections, the layers, readout
    assert calls == ["scalar_mlp"] * 3 + layer * 2 + ["scalar_mlp"]


def test_what_is_not_swapped_says_why():
    model = build("l2", "float64")
    layers = next(m for m in model.modules() if type(m).__name__ == "Allegro_Module")
    layers.tps[0].w3j[0, 0, 0, 0] *= -1
    with pytest.warns(UserWarning, match="accelerate left"):
        fastmlip.accelerate(model)
    rows = fastmlip.summary(model)
    kept = {r.path.removeprefix("model.func."): r.reason for r in rows if r.status == "kept"}
    assert "Wigner 3j" in kept["allegro"] and "Wigner 3j" in kept["allegro.tps.0"]
    assert "around it is not swapped" in kept["allegro.tps.1"]
    assert "no Allegro_Module" in kept["tensor_embed"]


def test_autocast_takes_the_hosts_forward():
    stock, fast = build("l2", "float32"), fastmlip.accelerate(build("l2", "float32"))
    with torch.autocast("cpu", torch.bfloat16):
        data = to_data(rattled())
        got, want = outputs(fast, data), outputs(stock, data)
    assert relative_error(got["forces"], want["forces"]) <= 2e-2


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_training_matches_eager_stock(backend, monkeypatch):
    torch._dynamo.reset()
    compile_with = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr("nequip.nn.compile.torch.compile", compile_with)
    stock = build("l2", "float64")
    compiled = modify(
        build("l2", "float64", compile_mode="compile"), [{"modifier": "enable_FastMLIP"}]
    )
    frames = [to_data(rattled()), to_data(rattled(2)), to_data(rattled())]
    with torch._inductor.config.patch(force_disable_caches=True):
        for batch in (structures()["batch"], AtomicDataDict.batched_from_list(frames)):
            for of in (force_loss_gradients, outputs):
                want, got = of(stock, batch), of(compiled, batch)
                for name, reference in want.items():
                    if reference.abs().max() > 1e-12:
                        assert relative_error(got[name], reference) <= 1e-10, name
    graphs = [graph for graph, _ in compiled._compiled_cache[0].values()]
    assert graphs and all("fastmlip.contraction" in graph.code for graph in graphs)


# ---------------------------------------------------------------- exports


def exported(model, target, data, file):
    """What the compiled model of ``target`` gives for ``data``, and for other frames in turn."""
    dim = torch.export.Dim
    shapes = {
        "graph": dim.STATIC,
        "node": dim("num_nodes", min=2, max=10**6),
        "edge": dim("num_edges", min=2, max=10**8),
    }
    inputs, names = target["input"], target["output"]
    aot_export_model(model, "cpu", inputs, names, dict(data), shapes, str(file))
    compiled = torch._inductor.aoti_load_package(str(file))

    def run(frame):
        with torch.inference_mode():
            return dict(zip(names, compiled([frame[key] for key in inputs]), strict=True))

    return run


@pytest.mark.parametrize("target", ["pair_allegro", pytest.param("ase", marks=pytest.mark.slow)])
@pytest.mark.parametrize("channels", [64, pytest.param(5, marks=pytest.mark.slow)])
def test_exports(target, channels, tmp_path):
    """With pair_allegro, the edges of ghost atoms come last, and ghosts have no edges of theirs."""
    target = {"ase": ASE_TARGET, "pair_allegro": PAIR_ALLEGRO_TARGET}[target]
    more = {"num_tensor_features": channels}
    stock = build("l2", "float64", **more)
    fast = fastmlip.accelerate(build("l2", "float64", **more)).requires_grad_(False)
    fast = copy.deepcopy(fast)  # which has not run
    frames = [
        target["data_settings"](AtomicDataDict.batched_from_list([to_data(rattled(n))]))
        for n in (2, 1, 3)
    ]
    run = exported(fast, target, frames[0], tmp_path / "model.nequip.pt2")
    for frame in frames:
        shuffled = torch.randperm(frame["edge_index"].shape[1], generator=torch.manual_seed(7))
        for order in (slice(None), shuffled):
            data = {**frame, "edge_index": frame["edge_index"][:, order].contiguous()}
            if "edge_cell_shift" in data:
                data["edge_cell_shift"] = data["edge_cell_shift"][order]
            want, got = outputs(stock, data), run(data)
            for key in set(want) & set(got):
                assert relative_error(got[key], want[key]) <= 1e-10, key
    assert {"atomic_energy", "forces"} <= set(got)


def test_a_hook_that_would_not_run_is_an_error():
    fast = fastmlip.accelerate(build("l2", "float64"))
    layers = next(m for m in fast.modules() if type(m).__name__ == "FastAllegro")
    handle = layers.latents[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"its latents\.0: a forward hook on it"):
        outputs(fast, to_data(rattled()))
    handle.remove()
    outputs(fast, to_data(rattled()))
    calls = []
    readout = fast.get_submodule("model.func.edge_readout")
    readout.mlp_module.register_forward_hook(lambda *_: calls.append(1))
    outputs(fast, to_data(rattled()))
    assert calls  # NequIP's own forward ran


@pytest.mark.parametrize("name", ["mish", "tanh"])
def test_other_activations(name):
    kinds = {f"{where}_mlp_nonlinearity": name for where in ("scalar_embed", "allegro", "readout")}
    deep = {"allegro_mlp_hidden_layers_depth": 2}
    stock = build("l2", "float64", **kinds, **deep)
    fast = fastmlip.accelerate(build("l2", "float64", **kinds, **deep))
    assert {"FastAllegro", "FastScalarMLP"} <= swapped(fast)
    want, got = outputs(stock, to_data(rattled())), outputs(fast, to_data(rattled()))
    for key, reference in want.items():
        assert relative_error(got[key], reference) <= 1e-10, key


class Between(torch.nn.Module):
    """The identity at the start, as fine-tuning adds it."""

    def __init__(self, field):
        super().__init__()
        self.field, self.irreps_in, self.irreps_out = field, {}, {}
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, data):
        data[self.field] = data[self.field] * self.scale
        return data


@pytest.mark.parametrize("field", ["edge_attrs", "edge_features"])
def test_a_module_between_embedding_and_layers(field):
    stock = build("l2", "float64")
    row = stock.get_submodule("model.func")
    modules = dict(row._modules)
    row._modules.clear()
    for name, module in modules.items():
        row._modules[name] = module
        if name == "tensor_embed":
            row._modules["between"] = Between(field)
    with pytest.warns(UserWarning, match="no Allegro_Module that fastmlip knows follows it"):
        fast = fastmlip.accelerate(copy.deepcopy(stock))
    for model in (stock, fast):
        model.get_submodule("model.func.between").scale.data.fill_(1.3)
    want, got = (force_loss_gradients(model, structures()["batch"]) for model in (stock, fast))
    for key, reference in want.items():
        assert relative_error(got[key], reference) <= 1e-10, key


def test_an_embedding_whose_reader_is_kept_is_kept():
    stock = build("l2", "float64")
    layers = stock.get_submodule("model.func.allegro")

    def forward(self, data):
        return super(type(self), self).forward(data)

    layers.__class__ = type("Allegro_Module", (type(layers),), {"forward": forward})
    with pytest.warns(UserWarning, match="Allegro_Module of an unknown version"):
        fast = fastmlip.accelerate(copy.deepcopy(stock))
    assert not swapped(fast) & {"FastAllegro", "FastTensorEmbed"}
    want, got = outputs(stock, to_data(rattled())), outputs(fast, to_data(rattled()))
    assert relative_error(got["forces"], want["forces"]) <= 1e-10


@pytest.mark.parametrize("field", ["edge_attrs", "edge_features"])
def test_a_hook_on_the_embedding_after_the_swap(field):
    stock, fast = build("l2", "float64"), fastmlip.accelerate(build("l2", "float64"))
    for model in (stock, fast):
        model.get_submodule("model.func.tensor_embed").register_forward_hook(
            lambda module, args, data: {**data, field: 1.5 * data[field]}
        )
    want, got = outputs(stock, to_data(rattled())), outputs(fast, to_data(rattled()))
    assert relative_error(got["forces"], want["forces"]) <= 1e-10
