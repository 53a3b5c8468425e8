"""Models of MACE's and their frames, for the tests of its host."""

import contextlib
import copy
import warnings
from functools import cache

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from e3nn import o3
from mace import modules, tools
from mace.data import AtomicData, KeySpecification, config_from_atoms
from mace.tools import torch_geometric

NUMBERS = [8, 29, 79]
SMALL = {
    "r_max": 4.5, "num_bessel": 6, "num_polynomial_cutoff": 5, "max_ell": 2, "num_interactions": 2,
    "hidden_irreps": "8x0e + 8x1o", "MLP_irreps": "6x0e", "avg_num_neighbors": 11.0,
    "correlation": 3, "radial_MLP": [16, 16], "first": "RealAgnosticResidualInteractionBlock",
    "others": "RealAgnosticResidualInteractionBlock", "cls": "ScaleShiftMACE",
}  # fmt: skip
VARIANTS = {
    "residual": {},
    "scalars": {"hidden_irreps": "16x0e", "max_ell": 3, "radial_MLP": [8, 8, 8]},
    "large": {"hidden_irreps": "4x0e + 4x1o + 4x2e", "max_ell": 3},
    "plain first": {"first": "RealAgnosticInteractionBlock", "cls": "MACE"},
    "density": {
        "first": "RealAgnosticDensityInteractionBlock", "pair_repulsion": True,
        "others": "RealAgnosticDensityResidualInteractionBlock", "distance_transform": "Agnesi",
    },
    "correlation 2": {"correlation": 2, "num_interactions": 3, "hidden_irreps": "5x0e + 5x1o"},
    "correlations 1 and 3": {"correlation": [1, 3]},
    "one layer": {"num_interactions": 1, "hidden_irreps": "7x0e"},
    "agnostic product": {"use_agnostic_product": True},
    "gaussians": {"radial_type": "gaussian"},
    "heads": {"heads": ["one", "two"]},
    "reduced CG": {"use_reduced_cg": True},
    "so3": {"use_so3": True, "hidden_irreps": "4x0e + 4x1e"},
    "last irreps kept": {"keep_last_layer_irreps": True},
    "edge irreps": {"edge_irreps": "6x0e + 6x1o"},
}  # fmt: skip


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)


@cache
def _small(name):
    options = {**SMALL, "use_reduced_cg": False, **VARIANTS[name]}
    cls = options.pop("cls")
    heads = options.get("heads", ["Default"])
    classes = modules.interaction_classes
    options["interaction_cls_first"] = classes[options.pop("first")]
    options["interaction_cls"] = classes[options.pop("others")]
    for irreps in ("hidden_irreps", "MLP_irreps", "edge_irreps"):
        if irreps in options:
            options[irreps] = o3.Irreps(options[irreps])
    if cls == "ScaleShiftMACE":
        options["atomic_inter_scale"] = [13.0 + n for n in range(len(heads))]
        options["atomic_inter_shift"] = [0.2 - n for n in range(len(heads))]
    torch.manual_seed(1)
    with default_dtype(torch.float64):
        return getattr(modules, cls)(
            num_elements=len(NUMBERS), atomic_numbers=NUMBERS, gate=torch.nn.functional.silu,
            atomic_energies=np.array([[-1.0, -2.0, 0.5]] * len(heads)), **options,
        )  # fmt: skip


def small(name="residual", dtype=torch.float64):
    """A model with random weights, in evaluation mode."""
    return copy.deepcopy(_small(name)).to(dtype).eval()


def crystal(symbols=("Cu", "O"), repeat=2, seed=0, a=4.26):
    """A rock salt crystal with displaced atoms."""
    random = np.random.default_rng(seed)
    atoms = bulk("CuO", "rocksalt", a=a, cubic=True) * (repeat, 1, 1)
    atoms.symbols = [symbols[i % len(symbols)] for i in range(len(atoms))]
    atoms.positions += 0.08 * random.normal(size=atoms.positions.shape)
    return atoms


STRUCTURES = {
    "crystal": crystal(("Cu", "O", "Au")),
    "own images": crystal(repeat=1, a=3.1)[:2],
    "molecule": Atoms("CuOO", [[0, 0, 0], [1.8, 0.1, 0], [-0.2, 1.9, 0.3]]),
    "lone atom": Atoms("O", [[0, 0, 0]]),
}


def data(model, *frames, dtype=torch.float64):
    """A batch, as MACE's calculator and trainer make it."""
    table = tools.AtomicNumberTable(model.atomic_numbers.tolist())
    with default_dtype(dtype):
        graphs = [
            AtomicData.from_config(
                config_from_atoms(atoms, key_specification=KeySpecification()), z_table=table,
                cutoff=float(model.r_max), heads=model.heads,
            )
            for atoms in frames
        ]  # fmt: skip
        loader = torch_geometric.dataloader.DataLoader(graphs, len(graphs), shuffle=False)
        return next(iter(loader)).to_dict()


OUTPUTS = ("energy", "node_energy", "forces", "stress", "virials", "node_feats")


def run(model, *frames, dtype=torch.float64, outputs=OUTPUTS, **options):
    out = model(data(model, *frames, dtype=dtype), compute_stress=True, **options)
    return {name: out[name].detach() for name in outputs}


def assert_same(got, want, rtol):
    for name, expected in want.items():
        size = expected.abs().max().clamp(min=0.1)
        assert (got[name] - expected).abs().max() <= rtol * size, name
