"""NequIP's chain of edge embeddings on :func:`fastmlip.ops.edge_embedding`, in one pass.

The chain is ``[SphericalHarmonicEdgeAttrs,] EdgeLengthNormalizer, BesselEdgeLengthEncoding
[, ApplyFactor]``, one after the other in a ``torch.nn.Sequential``, nested or not. The modules stay
in their places with their parameters and buffers; the Bessel one computes all fields, the others
leave theirs to it. Allegro's harmonics stand further down its model, in a module of its own: there
e3nn's ``SphericalHarmonics`` itself is swapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from fastmlip import ops
from fastmlip.integrations.harmonics import unsupported_harmonics
from fastmlip.integrations.nequip import edges
from fastmlip.integrations.nequip.forwards import objection
from fastmlip.spherical_harmonics import tables

RMAX_RECIP = "_fastmlip_rmax_recip"  # from the length normaliser to the end of the chain


class Chain(NamedTuple):
    """The modules of one chain."""

    harmonics: Any
    norm: Any
    bessel: Any
    factor: Any


class _Part(torch.nn.Module):
    """Takes the place of a module of the chain, with the attributes the host reads."""

    _is_graph_module_mixin = True
    irreps_in: dict[str, Any]
    irreps_out: dict[str, Any]
    norm_length_field: str
    edge_invariant_field: str
    tables: torch.Tensor
    _nequip_custom_ops_libs = ("fastmlip",)  # imported before a compiled model is loaded

    def __init__(self, old: torch.nn.Module) -> None:
        super().__init__()
        for name, value in vars(old).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)

    def _get_metadata_contributions(self) -> dict[str, str]:
        return {}

    def _add_independent_irreps(self, irreps: dict[str, Any]) -> None:
        for name, value in irreps.items():
            self.irreps_in.setdefault(name, value)
            self.irreps_out.setdefault(name, value)


class ComputedAtEnd(_Part):
    """Takes the place of ``SphericalHarmonicEdgeAttrs`` or ``ApplyFactor``: the end of the chain
    computes its field, or applies its factor."""

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return data


class FastEdgeLengthNormalizer(_Part):
    """Hands 1 / r_max on; makes edge vectors, and edge types where cutoffs depend on them."""

    def __init__(self, old: Any) -> None:
        super().__init__(old)
        self._per_edge_type = old._per_edge_type
        self.register_buffer("_rmax_recip", old._rmax_recip)

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        data = edges.with_vectors(data)
        if self._per_edge_type:
            from nequip.nn.utils import with_edge_type_

            data = with_edge_type_(data, self.edge_type_field)
        data[RMAX_RECIP] = self._buffers["_rmax_recip"]
        return data


class FastBesselEdgeLengthEncoding(_Part):
    """Computes the fields of the whole chain."""

    def __init__(self, chain: Chain) -> None:
        from nequip.data import AtomicDataDict as fields

        old, harmonics, norm = chain.bessel, chain.harmonics, chain.norm
        super().__init__(old)
        if old.trainable:
            self.bessel_weights = old.bessel_weights
        else:
            self.register_buffer("bessel_weights", old.bessel_weights)
        self.p = int(old.cutoff.p)
        self.factor = float(chain.factor.factor) if chain.factor is not None else 1.0
        self.output_dtype = old._output_dtype
        self.l_max = -1 if harmonics is None else harmonics.sh._lmax
        self.attrs_field = None if harmonics is None else harmonics.out_field
        self.edge_type_field = norm.edge_type_field if norm._per_edge_type else None
        self.fields = (fields.EDGE_VECTORS_KEY, fields.EDGE_LENGTH_KEY, fields.EDGE_CUTOFF_KEY)
        normalization = "component" if harmonics is None else harmonics.sh.normalization
        self.register_buffer("tables", tables(self.l_max, normalization), persistent=False)

    def extra_repr(self) -> str:
        return f"num_bessels={self.num_bessels}, l_max={self.l_max}"

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        vectors_field, length_field, cutoff_field = self.fields
        # at 200 edges nn.Module's way to an attribute would show
        held: dict[str, Any] = self._parameters if self.trainable else self._buffers
        roots, rmax_recip = held["bessel_weights"], data.pop(RMAX_RECIP)
        out = ops.edge_embedding(
            data[vectors_field],
            roots if roots.dtype is torch.float64 else roots.double(),
            rmax_recip if rmax_recip.dtype is torch.float64 else rmax_recip.double(),
            None if self.edge_type_field is None else data[self.edge_type_field],
            l_max=self.l_max,
            p=self.p,
            factor=self.factor,
            dtype=self.output_dtype,
            tables=self._buffers["tables"],
        )
        data[length_field] = out.length
        data[self.norm_length_field] = out.norm
        data[cutoff_field] = out.cutoff
        data[self.edge_invariant_field] = out.embedding
        if self.attrs_field is not None:
            data[self.attrs_field] = out.attrs
        return data


PARTS = {
    "SphericalHarmonicEdgeAttrs": ComputedAtEnd,
    "EdgeLengthNormalizer": FastEdgeLengthNormalizer,
    "BesselEdgeLengthEncoding": FastBesselEdgeLengthEncoding,
    "ApplyFactor": ComputedAtEnd,
}


def judge(module: torch.nn.Module, model: torch.nn.Module) -> str | None:
    """Why a module of a chain cannot be swapped, empty where it can; None for one that matters only
    in a chain."""
    if any(module is part for chain in chains(model) for part in chain):
        return ""
    if type(module).__name__ != "BesselEdgeLengthEncoding":
        return None  # cheap by itself, or its harmonics are swapped
    reason = "it does not follow an EdgeLengthNormalizer that fastmlip knows, without hooks"
    return _unsupported_bessel(module) or reason


def replace(module: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The new module for a ``ready`` one."""
    chain = next(c for c in chains(model) if any(module is part for part in c))
    if module is chain.bessel:
        return FastBesselEdgeLengthEncoding(chain)
    return PARTS[type(module).__name__](module)


def chains(model: torch.nn.Module) -> Iterator[Chain]:
    """All chains in ``model`` that can be swapped."""
    for module in model.modules():
        if not isinstance(module, torch.nn.Sequential):
            continue
        row = list(_flat(module))
        names = [type(part).__name__ for part in row]
        for at, bessel in enumerate(row):
            if at == 0 or names[at] != "BesselEdgeLengthEncoding" or _unsupported_bessel(bessel):
                continue
            norm = row[at - 1]
            if names[at - 1] != "EdgeLengthNormalizer" or not _fits(norm, bessel):
                continue
            if _hooked(norm):
                continue
            harmonics = row[at - 2] if at > 1 and _is_before(row[at - 2], bessel) else None
            after = row[at + 1] if at + 1 < len(row) else None
            yield Chain(harmonics, norm, bessel, after if _is_after(after, bessel) else None)


def _flat(sequence: torch.nn.Sequential) -> Iterator[Any]:
    for child in sequence:
        if isinstance(child, torch.nn.Sequential):
            yield from _flat(child)
        else:
            yield child


def _missing(module: torch.nn.Module, *names: str) -> str:
    missing = [name for name in names if not hasattr(module, name)]
    return f"an unknown version of the class, without {', '.join(missing)}" if missing else ""


def _unsupported_bessel(module: Any) -> str:
    if reason := _missing(
        module, "bessel_weights", "cutoff", "norm_length_field", "edge_invariant_field",
        "trainable", "num_bessels", "_output_dtype",
    ):  # fmt: skip
        return reason
    cutoff = module.cutoff
    name = getattr(cutoff, "original_name", type(cutoff).__name__)
    if name != "PolynomialCutoff":
        return f"its cutoff is a {name}, not a PolynomialCutoff"
    if cutoff.p != int(cutoff.p):
        return f"the power of its cutoff is {cutoff.p}, not an integer"
    return _hooked(module)


def _hooked(module: torch.nn.Module) -> str:
    return objection(module.named_modules())


def _fits(norm: Any, bessel: Any) -> bool:
    known = not _missing(norm, "_rmax_recip", "_per_edge_type", "edge_type_field")
    return known and norm.norm_length_field == bessel.norm_length_field


def _is_before(module: Any, bessel: Any) -> bool:
    return (
        type(module).__name__ == "SphericalHarmonicEdgeAttrs"
        and not _missing(module, "sh", "out_field", "_output_dtype")
        and not unsupported_harmonics(module.sh)
        and not _hooked(module)
        and module._output_dtype == bessel._output_dtype
    )


def _is_after(module: Any, bessel: Any) -> bool:
    return (
        type(module).__name__ == "ApplyFactor"
        and module.in_field == module.out_field == bessel.edge_invariant_field
        and not _hooked(module)
    )


def judge_harmonics(module: torch.nn.Module, model: torch.nn.Module) -> str | None:
    """:func:`unsupported_harmonics`, None in a chain that computes them."""
    owners = [c.harmonics for c in chains(model) if c.harmonics is not None]
    if any(getattr(owner, "sh", None) is module for owner in owners):
        return None
    return unsupported_harmonics(module)
