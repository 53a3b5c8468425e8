"""Models of SevenNet's and their frames, for the tests of its host."""

import contextlib
import copy
import warnings
from functools import cache
from unittest import mock

import e3nn
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from sevenn._const import DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG
from sevenn.atom_graph_data import AtomGraphData
from sevenn.model_build import build_E3_equivariant_model
from sevenn.train.dataload import unlabeled_atoms_to_graph
from sevenn.util import load_checkpoint

SPECIES = ["Cu", "O"]
SMALL = {
    "chemical_species": SPECIES, "_number_of_species": 2, "_type_map": {29: 0, 8: 1},
    "cutoff": 4.5, "channel": 8, "lmax": 2, "num_convolution_layer": 3,
    "weight_nn_hidden_neurons": [16, 16], "shift": 0.3, "scale": 1.7, "conv_denominator": 20.0,
}  # fmt: skip
VARIANTS = {
    "typed": {"self_connection_type": "nequip"},
    "linear": {"self_connection_type": "linear", "lmax": 3, "is_parity": False},
    "parity, XPLOR": {
        "is_parity": True, "self_connection_type": "nequip",
        "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3.5},
    },
    "trained denominators": {"train_denominator": True, "self_connection_type": "linear"},
    "by types": {"shift": [0.3, -0.2], "scale": [1.7, 0.9], "train_shift_scale": True},
}  # fmt: skip


@contextlib.contextmanager
def quiet_and_eager():
    """e3nn's default of today, which NequIP's commands change: scripted models have no copies."""
    before = e3nn.get_optimization_defaults()["jit_mode"]
    e3nn.set_optimization_defaults(jit_mode="eager")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        e3nn.set_optimization_defaults(jit_mode=before)


@cache
def _small(name):
    torch.manual_seed(1)
    config = {**copy.deepcopy(DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG), **SMALL, **VARIANTS[name]}
    with quiet_and_eager():
        return build_E3_equivariant_model(config)


def small(name="typed", dtype=torch.float64):
    """A model with random weights, in evaluation mode."""
    return copy.deepcopy(_small(name)).to(dtype).eval()


@cache
def _pretrained(name):
    with quiet_and_eager():
        return load_checkpoint(name).build_model()


def pretrained(name, dtype=torch.float32):
    """A model with the weights that come with SevenNet, in evaluation mode."""
    return copy.deepcopy(_pretrained(name)).to(dtype).eval()


def crystal(symbols=("Cu", "O"), repeat=2, seed=0, a=4.26):
    """A rock salt crystal with displaced atoms."""
    random = np.random.default_rng(seed)
    atoms = bulk("CuO", "rocksalt", a=a, cubic=True) * (repeat, 1, 1)
    atoms.symbols = [symbols[i % len(symbols)] for i in range(len(atoms))]
    atoms.positions += 0.08 * random.normal(size=atoms.positions.shape)
    return atoms


def molecule():
    return Atoms("CuOO", [[0, 0, 0], [1.8, 0.1, 0], [-0.2, 1.9, 0.3]])


def graph(atoms, r_max=4.5, dtype=torch.float64, model=None):
    """What a model that is not fed batches takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, r_max))
    data["edge_vec"] = data["edge_vec"].to(dtype)
    data["cell_volume"] = data["cell_volume"].to(dtype)
    if model is not None and model.modal_map:
        data["data_modality"] = next(iter(model.modal_map))
    return data


OUTPUTS = ("inferred_total_energy", "atomic_energy", "inferred_force", "inferred_stress")


def run(model, atoms, r_max=4.5, dtype=torch.float64, outputs=OUTPUTS):
    model.set_is_batch_data(False)
    with in_dtype(dtype):
        out = model(graph(atoms, r_max, dtype, model))
    return {name: out[name].detach() for name in outputs}


@contextlib.contextmanager
def in_dtype(dtype):
    """SevenNet's embedding of types is float32 in any model; here it is not, to see more digits."""
    if dtype is torch.float64:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    else:
        yield


def assert_same(got, want, rtol):
    for name, expected in want.items():
        size = expected.abs().max().clamp(min=0.1)
        assert (got[name] - expected).abs().max() <= rtol * size, name
