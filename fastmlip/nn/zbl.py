"""Module of :mod:`fastmlip.ops.zbl`, which states the formula and the sources of its constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from e3nn.o3 import Irreps

from fastmlip import ops
from fastmlip.ops.zbl import COULOMB

_PERIODS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy "
    "Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf "
    "Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
ELEMENTS = _PERIODS.split()  # by atomic number, from 1
# fields of NequIP's data
POSITIONS, TYPES, EDGE_INDEX = "pos", "atom_types", "edge_index"
VECTORS, LENGTHS, NORMED = "edge_vectors", "edge_lengths", "normed_edge_lengths"


class ZBL(torch.nn.Module):
    """ZBL repulsion added to the energy of each atom; takes the place of NequIP's module.

    In a NequIP or Allegro config::

        pair_potential:
          _target_: fastmlip.nn.ZBL
          units: metal
          chemical_species: ${chemical_symbols}

    The state dict is that of NequIP's module: ``atomic_numbers`` and ``_qqr2exesquare``.

    Args:
        type_names: names of the types, in their order.
        chemical_species: element of each type, in the order of ``type_names``, or by type name.
        units: ``metal`` (eV, Angstrom) or ``real`` (kcal/mol, Angstrom).
        polynomial_cutoff_p: exponent of the envelope that takes ZBL to zero at the cutoff.
        per_atom_energy_field: the field ``[N, 1]`` that ZBL is added to, or begins.
        irreps_in: irreps of the fields before this module, as NequIP's builders pass them.
        r_max: a cutoff of ZBL's own, at most that of the model's edges. By default each edge has
            the cutoff that the model gives it, read from ``normed_edge_lengths``.
        per_edge_type_cutoff: cutoffs by type of receiver, or by type of receiver and of sender,
            like ``{"H": 2.0, "C": {"H": 4.0}}``; what is left out is ``r_max``, which it needs.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
    """

    _is_graph_module_mixin = True  # how NequIP tells modules that act on its data
    _nequip_custom_ops_libs = ("fastmlip",)  # imported before a compiled model is loaded
    atomic_numbers: torch.Tensor
    _qqr2exesquare: torch.Tensor
    _cutoff: torch.Tensor | None

    def __init__(
        self,
        type_names: Sequence[str],
        chemical_species: Sequence[str] | Mapping[str, str],
        units: str,
        polynomial_cutoff_p: float = 6.0,
        per_atom_energy_field: str = "atomic_energy",
        irreps_in: Mapping[str, Any] | None = None,
        r_max: float | None = None,
        per_edge_type_cutoff: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        numbers = _atomic_numbers(list(type_names), chemical_species)
        if units not in COULOMB:
            raise ValueError(f"units: expected one of {sorted(COULOMB)}, got {units!r}")
        if not polynomial_cutoff_p >= 2:
            raise ValueError(f"polynomial_cutoff_p: expected at least 2, got {polynomial_cutoff_p}")
        self.p = float(polynomial_cutoff_p)
        self.per_atom_energy_field = per_atom_energy_field
        self.model_dtype = torch.get_default_dtype()
        # each of the two directed edges of a pair carries half of its energy
        prefactor = torch.tensor(COULOMB[units], dtype=torch.float64) * 0.5
        self.register_buffer("atomic_numbers", torch.tensor(numbers, dtype=self.model_dtype))
        self.register_buffer("_qqr2exesquare", prefactor)
        cutoff = None
        if r_max is not None:
            cutoff = _cutoffs(list(type_names), float(r_max), per_edge_type_cutoff or {})
        elif per_edge_type_cutoff is not None:
            raise ValueError("per_edge_type_cutoff: expected r_max, too")
        self.register_buffer("_cutoff", cutoff, persistent=False)
        self._init_irreps(irreps_in)

    def _init_irreps(self, irreps_in: Mapping[str, Any] | None) -> None:
        irreps = {k: None if v is None else Irreps(v) for k, v in (irreps_in or {}).items()}
        if self._cutoff is None and NORMED not in irreps:
            raise ValueError(
                f"irreps_in: expected the field {NORMED!r}, which a module before this one gives "
                f"(NequIP's EdgeLengthNormalizer); got {sorted(irreps)}. Or give r_max"
            )
        energy = irreps.get(self.per_atom_energy_field) or Irreps("0e")
        if any(ir.l for _, ir in energy):
            raise ValueError(
                f"irreps_in: {self.per_atom_energy_field} must be scalar, got {energy}"
            )
        self.irreps_in = {**irreps, POSITIONS: Irreps("1o"), EDGE_INDEX: None, TYPES: None}
        self.irreps_out = {**self.irreps_in, self.per_atom_energy_field: energy}

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adds ``[N, 1]`` energies, float64, to ``data[per_atom_energy_field]``.

        Reads ``edge_index`` (receivers first), ``atom_types``, ``edge_lengths`` (or
        ``edge_vectors``) and, without a cutoff of its own, ``normed_edge_lengths``.
        """
        if LENGTHS not in data:
            if VECTORS not in data:
                raise KeyError(f"data: expected {LENGTHS!r} or {VECTORS!r}, got {sorted(data)}")
            data[LENGTHS] = torch.linalg.vector_norm(data[VECTORS], dim=-1, keepdim=True)
        length = data[LENGTHS]
        if length.dim() == 1:
            length = length.unsqueeze(-1)
        # at 1,000 edges nn.Module's way to an attribute would show
        held: dict[str, Any] = self._buffers
        cutoff, normed = held["_cutoff"], None
        if cutoff is None:
            # derivatives reach it through the length, which it is proportional to
            normed = data[NORMED].detach()
            if normed.dim() == 1:
                normed = normed.unsqueeze(-1)
            if normed.dtype != length.dtype:
                normed = normed.to(length.dtype)
        before = data.get(self.per_atom_energy_field)
        types = data[TYPES]
        # with ghost atoms, only those that have an energy receive
        nodes = before if before is not None else data.get(POSITIONS, types)
        energy = ops.zbl(
            length, data[EDGE_INDEX], types, held["atomic_numbers"], held["_qqr2exesquare"], cutoff,
            self.p, nodes.shape[0], None if before is None else before.double(), normed,
        )  # fmt: skip
        data[self.per_atom_energy_field] = energy
        return data

    def extra_repr(self) -> str:
        symbols = " ".join(ELEMENTS[int(z) - 1] for z in self.atomic_numbers)
        return f"{symbols} | p = {self.p:g} | {self.per_atom_energy_field}"

    # what NequIP asks of a module that acts on its data

    def _add_independent_irreps(self, irreps: Mapping[str, Any]) -> None:
        for field, value in irreps.items():
            value = None if value is None else Irreps(value)
            self.irreps_in.setdefault(field, value)
            self.irreps_out.setdefault(field, value)

    def _get_metadata_contributions(self) -> dict[str, str]:
        return {}


def _atomic_numbers(type_names: list[str], species: Sequence[str] | Mapping[str, str]) -> list[int]:
    if isinstance(species, str) or not isinstance(species, (Sequence, Mapping)):
        raise TypeError(
            "chemical_species: expected a list in the order of type_names or a dict by type name, "
            f"got {species!r}"
        )
    if isinstance(species, Mapping):
        for what, names in (
            ("no element for type", [name for name in type_names if name not in species]),
            ("an element for unknown type", [name for name in species if name not in type_names]),
        ):
            if names:
                raise ValueError(f"chemical_species: {what} {', '.join(map(repr, names))}")
        species = [species[name] for name in type_names]
    if len(species) != len(type_names):
        raise ValueError(
            f"chemical_species: expected {len(type_names)} elements, one for each of type_names "
            f"{type_names}, got {len(species)}: {list(species)}"
        )
    for name, symbol in zip(type_names, species, strict=True):
        if symbol not in ELEMENTS:
            raise ValueError(f"chemical_species: {symbol!r} of type {name!r} is not an element")
    return [ELEMENTS.index(symbol) + 1 for symbol in species]


def _cutoffs(type_names: list[str], r_max: float, partial: Mapping[str, Any]) -> torch.Tensor:
    """``[T, T]`` cutoff radii, rows by the receiver's type."""
    table = torch.full((len(type_names), len(type_names)), r_max, dtype=torch.float64)

    def index(name: str) -> int:
        if name not in type_names:
            raise ValueError(
                f"per_edge_type_cutoff: unknown type {name!r}, expected one of {type_names}"
            )
        return type_names.index(name)

    for receiver, entry in partial.items():
        if isinstance(entry, Mapping):
            for sender, value in entry.items():
                table[index(receiver), index(sender)] = float(value)
        else:
            table[index(receiver)] = float(entry)
    if not (r_max > 0 and r_max < float("inf")):
        raise ValueError(f"r_max: expected a positive length, got {r_max}")
    if not ((table > 0) & (table <= r_max)).all():
        raise ValueError(
            f"per_edge_type_cutoff: expected lengths above 0 and up to r_max = {r_max}, got "
            f"{dict(partial)}"
        )
    return table
