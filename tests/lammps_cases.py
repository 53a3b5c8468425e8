"""Models and structures of the LAMMPS tests."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from nequip_cases import COMMON, TYPE_NAMES, build

import fastmlip
from fastmlip.integrations import hosts

ZBL = {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", "chemical_species": TYPE_NAMES}
CUTOFFS = {"Na": 3.0, "Cl": {"O": 2.5}}  # of edges to Na, and from O to Cl
ALLEGRO = {
    "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4},
    "l_max": 2, "parity": True, "num_layers": 2, "num_scalar_features": 8,
    "num_tensor_features": 4, "allegro_mlp_hidden_layers_width": 8,
    "readout_mlp_hidden_layers_width": 8, "scalar_embed_mlp_hidden_layers_width": 8,
}  # fmt: skip


class Model(NamedTuple):
    """One row: a config of ``nequip_cases``, or Allegro's, and how it is exported."""

    config: str
    dtype: str = "float64"
    tabulated: bool = False
    more: dict = {}  # noqa: RUF012

    def build(self) -> torch.nn.Module:
        more = dict(self.more)
        if self.config == "allegro":
            from allegro.model import AllegroModel

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                keys = {**COMMON, **ALLEGRO, "model_dtype": self.dtype, **more}
                model = AllegroModel(**keys).eval()
        else:
            model = build(self.config, self.dtype, **more)
        if self.tabulated:
            return fastmlip.tabulate(model, tol=1e-3)
        return fastmlip.accelerate(model)


BOTH = {"pair_potential": ZBL, "per_edge_type_cutoff": CUTOFFS}
MODELS = {
    "nequip": Model("tiny", more={"num_layers": 3, **BOTH}),
    "allegro tabulated": Model("allegro", tabulated=True, more={"per_edge_type_cutoff": CUTOFFS}),
}
SLOW = {
    "S, parity": Model("S", more={"parity": True}),
    "S, float32": Model("S", "float32"),
    "S tabulated": Model("S", tabulated=True),
    "M, 4 layers, parity": Model("M", more={"parity": True}),
    "M, float32, tabulated": Model("M", "float32", tabulated=True),
    "allegro": Model("allegro", more=BOTH),
    "allegro, float32": Model("allegro", "float32"),
}


class Structure(NamedTuple):
    """Atoms with their types in LAMMPS, of which the model's are ``names``, and LAMMPS's commands
    before its box."""

    atoms: Atoms
    types: list[int]
    names: list[str]
    before: str = ""

    def truth(self, host) -> dict[str, np.ndarray]:
        """What the model says by itself: energies, forces, the virial as xx yy zz xy xz yz."""
        numbers = [host.type_names.index(self.names[kind]) for kind in self.types]
        out = host.run(host.frame(self.atoms, numbers))
        found = {
            "energies": out["atomic_energy"].detach().numpy().reshape(-1),
            "forces": out["forces"].detach().numpy(),
        }
        if self.atoms.cell.rank:
            virial = -out["stress"].detach().numpy().reshape(3, 3) * self.atoms.get_volume()
        else:
            virial = self.atoms.positions.T @ found["forces"]
        return {**found, "virial": virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]}


def _crystal(cells=(2, 2, 2), seed=3) -> Atoms:
    atoms = bulk("Cu", "fcc", a=3.7, cubic=True) * cells
    atoms.rattle(0.15, seed=seed)
    return atoms


def _mixed(atoms: Atoms, before: str = "") -> Structure:
    """All types in turn; LAMMPS has them in another order than the model."""
    return Structure(atoms, [i % 3 for i in range(len(atoms))], ["O", "Na", "Cl"], before)


def structures() -> dict[str, Structure]:
    sheared = _crystal()
    sheared.set_cell([[7.4, 0, 0], [1.1, 7.2, 0], [-0.8, 0.9, 7.6]], scale_atoms=True)
    slab = _crystal()
    slab.set_cell([7.4, 7.4, 20.0])
    slab.positions[:, 2] += 6.0
    slab.pbc = [True, True, False]
    cluster = Atoms("Cu13", _crystal().positions[:13])
    tiny = Atoms("Cu2", [[0.1, 0.0, 0.2], [1.3, 1.2, 1.0]], cell=np.diag([2.5, 2.6, 2.9]), pbc=True)
    chain = Atoms("Cu4", [[2.6 * i + 0.3, 0.2 * i, 1.0] for i in range(4)])
    chain.set_cell([10.4, 9.0, 9.0])
    chain.pbc = True
    corner = Atoms("Cu7", _crystal().positions[:7] * 0.8 + 0.5, cell=np.eye(3) * 24.0, pbc=True)
    alone = corner.copy()
    alone.append("Cu")
    alone.positions[-1] = [15.0, 15.0, 15.0]
    return {
        "orthogonal": _mixed(_crystal()),
        "triclinic": _mixed(sheared),
        "slab": _mixed(slab),
        "cluster": _mixed(cluster),
        "smaller than twice the cutoff": _mixed(tiny),
        "an atom on each of four ranks": _mixed(chain, "processors * 1 1"),
        "ranks without atoms": _mixed(corner),
        "an atom without neighbours": _mixed(alone),
        "a single atom": _mixed(Atoms("Cu", [[1.0, 2.0, 3.0]], cell=np.eye(3) * 9.0, pbc=True)),
        "a single type": Structure(_crystal(), [0] * 32, ["Cl"]),
    }


def described(model: torch.nn.Module):
    return hosts.describe(model)
