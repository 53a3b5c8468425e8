"""SevenNet's ``EdgeEmbedding`` on :func:`fastmlip.ops.edge_embedding`.

Lengths, harmonics, and with a polynomial cutoff the radial basis too, in one pass in float64. An
XPLOR cutoff is the host's own, on these lengths. The basis is zero from the cutoff on, where the
host's formulas go on. In a tabulated model there is no radial basis, but the place of each length
in the grid of the splines.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fastmlip import ops
from fastmlip.integrations import inner
from fastmlip.integrations.derived import Derived, derive, has_kernels
from fastmlip.integrations.harmonics import unsupported_harmonics
from fastmlip.nn.radial_spline import RadialSpline
from fastmlip.spherical_harmonics import tables

PARTS = {"basis_function": ("BesselBasis",), "cutoff_function": ("PolynomialCutoff", "XPLORCutoff"),
         "spherical": ("SphericalEncoding",)}  # fmt: skip
FIRST_ROW = "fastmlip_first_row"  # of the six rows of coefficients of an edge, in tabulated models


class FastEdgeEmbedding(Derived):
    """What the derived class has in place of the host's."""

    tables: torch.Tensor
    look: inner.Look
    spline: RadialSpline | None  # of any layer: all have one grid
    pieces: int  # that the range is cut into: two for an XPLOR cutoff

    def forward(self: Any, data: Any) -> Any:
        """``data`` with lengths ``[E]``, radial basis ``[E, B]`` and harmonics
        ``[E, (l_max + 1)^2]``, in the dtype of the edge vectors."""
        vec = data["edge_vec"]
        if self.spline is None and (not has_kernels(vec) or self.altered()):
            return super().forward(data)  # type: ignore[misc]
        basis, cutoff, dtype = self.basis_function, self.cutoff_function, vec.dtype
        is_polynomial = inner.kind(cutoff) == "PolynomialCutoff"
        r_max = cutoff.cutoff_length if is_polynomial else cutoff.r_cut
        coeffs = basis.coeffs if is_polynomial and self.spline is None else basis.coeffs[:0]
        out = ops.edge_embedding(
            vec,
            coeffs.to(vec.device, torch.float64) * (r_max / math.pi),
            torch.full((1,), 1 / r_max, dtype=torch.float64, device=vec.device),
            l_max=self.spherical.lmax,
            p=int(cutoff.p) if is_polynomial else 6,
            factor=basis.prefactor * math.pi / r_max,
            dtype=dtype,
            tables=self.tables,
        )
        length = out.length.squeeze(1).to(dtype)
        data["edge_length"], data["edge_attr"] = length, out.attrs
        if self.spline is not None:
            data["edge_embedding"], data[FIRST_ROW] = self._places(out.length.squeeze(1))
        elif is_polynomial:
            data["edge_embedding"] = out.embedding
        else:
            envelope = torch.where(length < r_max, cutoff(length), 0.0)
            data["edge_embedding"] = basis(length) * envelope.unsqueeze(-1)
        return data

    def _places(self: Any, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What :class:`RadialSpline` says of lengths ``[E]`` in float64."""
        cutoff = self.cutoff_function
        if self.pieces == 1:
            return self.spline(length / cutoff.cutoff_length)
        is_beyond = length >= cutoff.r_on
        width = cutoff.r_cut - cutoff.r_on
        x = torch.where(is_beyond, (length - cutoff.r_on) / width, length / cutoff.r_on)
        return self.spline(x, is_beyond.long())

    def altered(self: Any) -> str:
        """What was put inside after the swap and needs the host's forward to run; empty where there
        is nothing."""
        return self.look(lambda: (unsupported(self), list(self.modules())))


def unsupported(module: Any) -> str:
    """Why an ``EdgeEmbedding`` cannot be swapped; empty where it can."""
    for name, kinds in PARTS.items():
        part: Any = getattr(module, name, None)
        if inner.kind(part) not in kinds:
            return f"its {name} is a {inner.kind(part)}, not a {' or '.join(kinds)}"
    cutoff = module.cutoff_function
    if inner.kind(cutoff) == "PolynomialCutoff" and cutoff.p != int(cutoff.p):
        return f"the power of its cutoff is {cutoff.p}, not an integer"
    inside = [(name, part) for name, part in module.named_modules() if name]
    return unsupported_harmonics(module.spherical.sph) or inner.why_not(inside)


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    new = derive(FastEdgeEmbedding, old)
    host: Any = old
    normalization = host.spherical.sph.normalization
    new.register_buffer("tables", tables(host.spherical.lmax, normalization), persistent=False)
    new.look, new.spline, new.pieces = inner.Look(), None, 1
    return new
