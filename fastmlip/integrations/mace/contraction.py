"""MACE's ``SymmetricContraction`` on :func:`fastmlip.ops.symmetric_contraction`.

For an irrep of the output, degrees nu and the parameters k of a degree, MACE sums::

    out[n, c, m] = sum over nu, i_1 .. i_nu, k of
        U_nu[m, i_1 .. i_nu, k] weights_nu[z_n, k, c] x[n, c, i_1] .. x[n, c, i_nu]

A product of inputs does not depend on their order: with S the sum of U over the orders of a
monomial, the coefficient of a monomial is ``sum_k S[m, monomial, k] weights[z, k, c]``. U comes from
the model, so it has the signs of the Clebsch-Gordan coefficients that the model was made with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from e3nn.o3 import Irreps

from fastmlip import nn
from fastmlip.integrations import inner
from fastmlip.polynomial import Polynomial

Tensor = torch.Tensor
HIGHEST = 3  # degree
Terms = dict[tuple[int, tuple[int, ...]], Tensor]  # of outputs and monomials: S over parameters


class FoldedContraction(torch.nn.Module):
    """The forward of a ``SymmetricContraction``, whose weights it is given at every call.

    Inputs and outputs have the channels innermost, ``[N, I * U]`` and ``[N, M * U]``.
    """

    def __init__(self, contraction: Any) -> None:
        super().__init__()
        terms: list[tuple[int, tuple[int, ...]]] = []
        self.blocks: list[tuple[int, int]] = []  # of S: which contraction, which degree
        first = 0
        for number, part in enumerate(contraction.contractions):
            for degree in range(1, part.correlation + 1):
                found = _terms(part.U_tensors(degree), degree, first)
                if not found:
                    continue
                name = f"S_{len(self.blocks)}"
                self.register_buffer(name, torch.stack(list(found.values())), persistent=False)
                self.blocks.append((number, degree))
                terms += found
            first += Irreps(str(contraction.irreps_out))[number].ir.dim
        inputs = Irreps(str(contraction.irreps_in))
        self.channels = inputs[0].mul
        order = sorted(range(len(terms)), key=terms.__getitem__)
        polynomial = Polynomial(sum(ir.dim for _, ir in inputs), first, tuple(sorted(terms)))
        self.operator = nn.SymmetricContraction(polynomial)
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def fold(self, contraction: Any, types: Tensor) -> Tensor:
        """Coefficients ``[len(types), terms, U]``."""
        parts = []
        for n, (number, degree) in enumerate(self.blocks):
            weights = _weights(contraction.contractions[number], degree)
            parts.append(torch.matmul(getattr(self, f"S_{n}"), weights.index_select(0, types)))
        return torch.cat(parts, 1).index_select(1, self.order)

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


def _weights(part: Any, degree: int) -> Tensor:
    """``[num_elements, parameters, U]``"""
    highest = part.correlation
    return part.weights_max if degree == highest else part.weights[highest - degree - 1]


def _terms(u: Tensor, degree: int, first: int) -> Terms:
    """Of ``U [m, i_1 .. i_degree, k]``, or without m for a scalar; ``first`` is the number of the
    output m = 0."""
    u = u if u.dim() == degree + 2 else u.unsqueeze(0)
    found: Terms = {}
    entries = u.abs().amax(-1).nonzero()
    values = u[tuple(entries.t())]
    for (m, *inputs), value in zip(entries.tolist(), values, strict=True):
        at = (first + m, tuple(sorted(inputs)))
        found[at] = found[at] + value if at in found else value
    return found
