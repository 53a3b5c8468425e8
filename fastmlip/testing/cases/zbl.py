"""Pairs of elements, cutoffs and exponents of ZBL.

``OPERATORS["zbl"].cases["oxides"].problem`` holds the arguments of the operator that have no
gradient; :func:`make_inputs` draws lengths on a random graph.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch

from fastmlip.ops.zbl import COULOMB
from fastmlip.ops.zbl import reference as zbl_reference
from fastmlip.ops.zbl import zbl as zbl_operator
from fastmlip.testing.cases.operator import Operator


class Problem(NamedTuple):
    """Arguments of the operator after the inputs."""

    atomic_numbers: tuple[int, ...]
    cutoff: float | tuple[tuple[float, ...], ...]
    p: float = 6.0
    units: str = "metal"
    normed: bool = False  # edges bring their cutoff as normed lengths
    num_nodes: int | None = None

    def arguments(self, inputs: Inputs) -> tuple:
        device, types = inputs.edge_length.device, len(self.atomic_numbers)
        f64 = partial(torch.tensor, dtype=torch.float64, device=device)
        numbers = f64(self.atomic_numbers)
        prefactor = f64(COULOMB[self.units] / 2)
        cutoff = f64(self.cutoff).expand(types, types)
        if self.normed:
            receiver, sender = inputs.atom_types.long()[inputs.edge_index.long()]
            normed = inputs.edge_length.detach().double() / cutoff[receiver, sender]
            normed = normed.float().to(inputs.edge_length.dtype)  # the same numbers in every dtype
            return numbers, prefactor, None, self.p, self.num_nodes, None, normed
        return numbers, prefactor, cutoff, self.p, self.num_nodes, None, None


class Case(NamedTuple):
    """One row."""

    problem: Problem


class Inputs(NamedTuple):
    """Operands in the order of the operator; ``edge_index[0]`` receives."""

    edge_length: torch.Tensor
    edge_index: torch.Tensor
    atom_types: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """Lengths in ``dtype``, indices as they are."""
        return self._replace(edge_length=self.edge_length.to(dtype))


def zbl(*inputs: torch.Tensor, problem: Problem) -> torch.Tensor:
    """The operator on the operands of a case."""
    operands: Any = (*inputs, *problem.arguments(Inputs(*inputs)))
    return zbl_operator(*operands)


def reference(*inputs: torch.Tensor, problem: Problem) -> torch.Tensor:
    """The reference on the same operands."""
    operands: Any = (*inputs, *problem.arguments(Inputs(*inputs)))
    return zbl_reference(*operands)


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float64,
    nodes: int = 5,
    edges: int = 57,
    seed: int = 0,
    sorted: bool = False,
    index_dtype: torch.dtype = torch.int64,
    device: str = "cpu",
) -> Inputs:
    """Lengths of 0.4 A to 1.2 times the largest cutoff, on a graph with self-edges; types at
    random. The first ``num_nodes`` nodes of the problem receive."""
    random = torch.Generator().manual_seed(seed)
    problem = case.problem
    largest = torch.tensor(problem.cutoff).max().item()
    # on a grid that float32 holds: a length keeps its side of the cutoff in every dtype
    steps = torch.randint(0, 1 << 16, (edges,), generator=random) / (1 << 16)
    length = 0.40625 + (1.1875 * largest - 0.40625) * steps.double()
    index = torch.randint(0, max(nodes, 1), (2, edges), generator=random)
    index[0] %= max(problem.num_nodes or nodes, 1)
    if sorted:
        index[0] = index[0].sort().values
    types = torch.randint(0, len(problem.atomic_numbers), (nodes,), generator=random)
    return Inputs(
        length.float().to(device, dtype),
        index.to(device, index_dtype),
        types.to(device, index_dtype),
    )


ZBL = {
    "water": Case(Problem((1, 8), 5.0)),
    "oxides": Case(Problem((92, 8, 29), 4.5, units="real")),
    "per-type cutoffs": Case(
        Problem((1, 6, 8), ((2.0, 3.0, 4.0), (1.5, 5.0, 2.5), (3.5, 1.25, 4.5)))
    ),
    "normed lengths": Case(Problem((1, 79), ((3.0, 4.0), (5.0, 6.0)), normed=True)),
    "p = 2": Case(Problem((14, 6), 5.0, p=2.0)),
    "p = 7.5": Case(Problem((14, 6), 5.0, p=7.5)),
    "p = 48, normed": Case(Problem((3, 17), 5.0, p=48.0, normed=True)),
    "ghosts": Case(Problem((1, 8), 5.0, num_nodes=3)),
    "every element": Case(Problem(tuple(range(1, 119)), 6.0)),
}  # fmt: skip


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    names = ("atomic_numbers", "prefactor", "cutoff", "p", "num_nodes", "base", "normed_length")
    rest = case.problem.arguments(inputs)
    return {**inputs._asdict(), **dict(zip(names, rest, strict=True))}


OPERATOR = Operator(
    zbl, reference, make_inputs, ZBL, arguments,
    {"nodes": 700, "edges": 33_000}, {"nodes": 4, "edges": 9},
    triton=("per-type cutoffs",),
)  # fmt: skip
