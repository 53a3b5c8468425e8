"""The description of polynomials in several variables and the table made from it: pure data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

HIGHEST = 3  # degree
MOST = 2**16 - 1  # inputs, or outputs
HEADER = 5

Term = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Polynomial:
    """``outputs`` polynomials without a constant in ``inputs`` variables, of degrees 1 to 3.

    Args:
        inputs: how many variables.
        outputs: how many polynomials.
        terms: ``(output, monomial)`` of each coefficient, in ascending order, each once. A monomial
            is the numbers of its variables, in ascending order: ``(0, 0, 2)`` is x0^2 x2.

    Raises:
        ValueError: naming the argument, what came and what was expected.
    """

    inputs: int
    outputs: int
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        for name, value in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not 0 <= value <= MOST:
                raise ValueError(f"{name}: expected 0 to {MOST}, got {value}")
        for number, (output, monomial) in enumerate(self.terms):
            where = f"terms[{number}]"
            if not 0 <= output < self.outputs:
                raise ValueError(
                    f"{where}: expected one of {self.outputs} outputs, counted from 0, got {output}"
                )
            if not 1 <= len(monomial) <= HIGHEST:
                raise ValueError(f"{where}: expected a degree from 1 to {HIGHEST}, got {monomial}")
            if not all(0 <= i < self.inputs for i in monomial):
                raise ValueError(
                    f"{where}: expected inputs from 0 to {self.inputs - 1}, got {monomial}"
                )
            if any(i > j for i, j in pairwise(monomial)):
                raise ValueError(f"{where}: expected inputs in ascending order, got {monomial}")
        for number, (term, following) in enumerate(pairwise(self.terms)):
            if not term < following:
                raise ValueError(
                    f"terms[{number + 1}]: expected ascending order, got {following} after {term}"
                )
        # cached here, because before Python 3.12 Dynamo cannot trace a cached_property's lock
        _ = self.words

    @property
    def monomials(self) -> int:
        """How many different monomials there are."""
        return len({monomial for _, monomial in self.terms})

    @cached_property
    def rows(self) -> tuple[tuple[int, int, int, int], ...]:
        """``(output, i, j, k)`` of each term, inputs counted from 1; 0 is the factor 1."""
        rows = []
        for output, monomial in self.terms:
            i, j, k = _padded(monomial, HIGHEST)
            rows.append((output, i, j, k))
        return tuple(rows)

    @cached_property
    def words(self) -> tuple[int, ...]:
        """The numbers of :meth:`tables`."""
        values: dict[int, Groups] = {row: {} for row in range(self.outputs)}
        slopes: dict[int, Groups] = {row: {} for row in range(self.inputs)}
        for t, (output, i, j, k) in enumerate(self.rows):
            values[output].setdefault((i, j, 1), []).append((t, k))
            monomial = self.terms[t][1]
            for one in set(monomial):
                rest = list(monomial)
                rest.remove(one)
                i, j = _padded(rest, HIGHEST - 1)
                group = i, j, monomial.count(one)
                slopes[one].setdefault(group, []).append((t, output + 1))
        terms = [word for row in self.rows for word in row]
        first = HEADER + len(terms)
        of_values = _section(values.values(), first)
        second = first + len(of_values)
        header = [self.inputs, self.outputs, len(self.terms), first, second]
        return (*header, *terms, *of_values, *_section(slopes.values(), second))

    def tables(self) -> torch.Tensor:
        """All that kernels need, as one int64 tensor.

        ``[inputs, outputs, terms, where the values begin, where the slopes begin]``, then
        :attr:`rows`, which is all that the C++ kernels and the reference read. GPU kernels read
        the other two parts, which list products ``factor * x[i] x[j] * coefficient * y``: of each
        output with y an input, and of the derivative in each input with y the gradient of an
        output (counted from 1, too).

        A part has for each of its rows the position of the first group; after the groups one more;
        groups ``(i, j, factor, position of the first product)``, of the same factors each, and one
        more behind the last; products ``term * 2^16 + y``.
        """
        return torch.tensor(self.words, dtype=torch.int64)


Groups = dict[tuple[int, int, int], list[tuple[int, int]]]  # factors: their (term, y)


def _padded(monomial: Iterable[int], degree: int) -> tuple[int, ...]:
    counted = tuple(i + 1 for i in monomial)
    return counted + (0,) * (degree - len(counted))


def _section(rows: Iterable[Groups], begin: int) -> list[int]:
    rows = list(rows)
    groups = [group for row in rows for group in sorted(row.items())]
    at_group = begin + len(rows) + 1
    at_product = at_group + 4 * (len(groups) + 1)
    pointers = [at_group]
    table: list[int] = []
    products: list[int] = []
    for row in rows:
        pointers.append(pointers[-1] + 4 * len(row))
    for factors, found in groups:
        table += [*factors, at_product + len(products)]
        products += [(t << 16) + y for t, y in found]
    table += [0, 0, 0, at_product + len(products)]
    return [*pointers, *table, *products]
