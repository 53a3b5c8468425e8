"""MACE's ``SymmetricContraction`` on :func:`fastmlip.ops.symmetric_contraction`.

For an irrep of the output, degrees nu and the parameters k of a degree, MACE sums::

    out[n, c, m] = sum over nu, i_1 .. i_nu, k of
        U_nu[m, i_1 .. i_nu, k] weights_nu[z_n, k, c] x[n, c, i_1] .. x[n, c, i_nu]

A product of inputs does not depend on their order: with S the sum of U over the orders of a
monomial, the coefficient of a monomial is ``sum_k S[m, monomial, k] weights[z, k, c]``. U comes
from the model, so it has the signs of the Clebsch-Gordan coefficients that the model was made with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from e3nn.o3 import Irreps

from fastmlip import nn
from fastmlip.integrations import inner
from fastmlip.polynomial import HIGHEST, Polynomial

Tensor = torch.Tensor


class FoldedContraction(torch.nn.Module):
    """The forward of a ``SymmetricContraction``, whose weights it is given at every call.

    Inputs and outputs have the channels innermost, ``[N, I * U]`` and ``[N, M * U]``.
    """

    made_of: list[tuple[Tensor, int]]  # each U, and how often it was written to

    def __init__(self, contraction: Any) -> None:
        super().__init__()
        self._make(contraction)

    @torch.no_grad()
    def _make(self, contraction: Any) -> None:
        inputs, outputs = (Irreps(str(i)) for i in (contraction.irreps_in, contraction.irreps_out))
        self.channels = inputs[0].mul
        terms: list[tuple[int, tuple[int, ...]]] = []
        for number, part in enumerate(contraction.contractions):
            first = sum(ir.dim for _, ir in outputs[:number])
            found, s = _terms(part, first)
            self.register_buffer(f"S_{number}", s, persistent=False)
            terms += found
        polynomial = Polynomial(
            sum(ir.dim for _, ir in inputs), sum(ir.dim for _, ir in outputs), tuple(terms)
        )
        self.operator = nn.SymmetricContraction(polynomial).to(s.device)
        self.made_of = [(u, _version(u)) for u in _couplings(contraction)]

    def _is_current(self, contraction: Any) -> bool:
        """Whether U is what S was made of: state dicts bring a U too."""
        us = _couplings(contraction)
        return all(
            u is seen and _version(u) == n for u, (seen, n) in zip(us, self.made_of, strict=True)
        )

    def fold(self, contraction: Any, types: Tensor) -> Tensor:
        """Coefficients ``[len(types), terms, U]``."""
        if not self._is_current(contraction):
            self._make(contraction)
        blocks = []
        for number, part in enumerate(contraction.contractions):
            weights = torch.cat([w.index_select(0, types) for w in _weights(part)], 1)
            blocks.append(torch.matmul(getattr(self, f"S_{number}"), weights))
        return torch.cat(blocks, 1)

    def forward(
        self, contraction: Any, x: Tensor, types: Tensor, kind: Tensor,
        taken: Callable[[Tensor], Tensor],
    ) -> Tensor:  # fmt: skip
        """``contraction(x)`` of atoms of the types ``types[kind]``."""
        coefficients = taken(self.fold(contraction, types))
        x = x.view(x.shape[0], -1, self.channels)
        return self.operator(x, coefficients, kind).flatten(1)

    @staticmethod
    def unsupported(contraction: Any) -> str:
        """Why a ``SymmetricContraction`` cannot be taken over; empty where it can."""
        if inner.kind(contraction) != "SymmetricContraction":
            return f"its contraction is a {inner.kind(contraction)}"
        inputs = Irreps(str(contraction.irreps_in))
        muls = {mul for mul, _ in inputs} | {mul for mul, _ in Irreps(str(contraction.irreps_out))}
        if len(muls) != 1:
            return f"its contraction has several numbers of channels, {sorted(muls)}"
        for part in contraction.contractions:
            if inner.kind(part) != "Contraction":
                return f"a part of its contraction is a {inner.kind(part)}"
            if part.correlation > HIGHEST:
                return f"its correlation is {part.correlation}, fastmlip goes to {HIGHEST}"
        return ""


def _couplings(contraction: Any) -> list[Tensor]:
    """U of each irrep of the output and each degree."""
    return [
        u
        for part in contraction.contractions
        for name, u in part._buffers.items()
        if name.startswith("U_matrix")
    ]


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def _weights(part: Any) -> list[Tensor]:
    """``[num_elements, parameters, U]`` of each degree, the first one first."""
    return [*reversed(list(part.weights)), part.weights_max]


def _terms(part: Any, first: int) -> tuple[list[tuple[int, tuple[int, ...]]], Tensor]:
    """Outputs, counted from ``first``, and monomials of a ``Contraction``, in ascending order, and
    S ``[terms, parameters of all degrees]``."""
    us = [part.U_tensors(degree) for degree in range(1, part.correlation + 1)]
    at, rows = [], []
    parameters = [u.shape[-1] for u in us]
    for degree, u in enumerate(us, 1):
        u = u if u.dim() == degree + 2 else u.unsqueeze(0)  # a scalar has no m
        entries = u.abs().amax(-1).nonzero()
        before, after = sum(parameters[: degree - 1]), sum(parameters[degree:])
        rows.append(torch.nn.functional.pad(u[tuple(entries.t())], (before, after)))
        at += [(first + m, tuple(sorted(inputs))) for m, *inputs in entries.tolist()]
    terms = sorted(set(at))
    place = {term: n for n, term in enumerate(terms)}
    index = torch.tensor([place[term] for term in at], dtype=torch.long, device=us[0].device)
    return terms, us[0].new_zeros(len(terms), sum(parameters)).index_add(0, index, torch.cat(rows))
