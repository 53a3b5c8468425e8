"""MLPs of Allegro models, odd widths, one layer to five, input and result in one tensor or two."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch

from fastmlip.ops.scalar_mlp import reference, scalar_mlp
from fastmlip.testing.cases.operator import Operator


class Case(NamedTuple):
    """One row; ``columns2`` of the input are in a second tensor, ``split`` as in the operator."""

    widths: tuple[int, ...]
    columns2: int = 0
    split: int | None = None

    @property
    def problem(self) -> Case:
        return self


class Inputs(NamedTuple):
    """Operands in the order of the operator; ``x2`` has no columns where it is not given."""

    x: torch.Tensor
    weights: torch.Tensor
    x2: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating operands in ``dtype``."""
        return Inputs(*(t.to(dtype) for t in self))


def make_inputs(
    case: Case, dtype: torch.dtype = torch.float64, edges: int = 150, seed: int = 0
) -> Inputs:
    """Random rows, and weights that keep their size."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    weights = [draw(a * b) * 1.5 / max(1, a) ** 0.5 for a, b in pairwise(case.widths)]
    first = case.widths[0] - case.columns2
    return Inputs(draw(edges, first), torch.cat(weights), draw(edges, case.columns2))


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    x2 = inputs.x2 if case.columns2 else None
    return {**inputs._asdict(), "x2": x2, "widths": case.widths, "split": case.split}


def _whole(result: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.cat(result, 1) if isinstance(result, tuple) else result


def op(x: torch.Tensor, weights: torch.Tensor, x2: torch.Tensor, problem: Case) -> torch.Tensor:
    """A split result is put together, for there is one."""
    return _whole(scalar_mlp(**arguments(Inputs(x, weights, x2), problem)))


def plain(x: torch.Tensor, weights: torch.Tensor, x2: torch.Tensor, problem: Case) -> torch.Tensor:
    return _whole(reference(**arguments(Inputs(x, weights, x2), problem)))


SCALAR_MLP = {
    "allegro, latent": Case((128, 64, 256), columns2=64, split=64),
    "odd": Case((17, 8, 1, 35, 9), columns2=5, split=4),
    "allegro, embedding": Case((8, 64, 64)),
    "allegro, projection": Case((64, 448), split=64),
    "allegro, readout": Case((192, 32, 1), columns2=64),
    "five layers": Case((7, 17, 17, 17, 17, 3)),
    "one column": Case((1, 1)),
    "nothing in the first result": Case((5, 6, 7), split=0),
    "no columns": Case((0, 3, 2)),
    "no hidden columns": Case((4, 0, 2)),
}

OPERATOR = Operator(op, plain, make_inputs, SCALAR_MLP, arguments, {"edges": 2500}, {"edges": 5})
