"""Products of tensor_product_conv's table with the three ways to make edge weights.

``OPERATORS["radial_conv"].cases["pairs"].kind`` says what ``chosen`` is in its inputs:
``edge_pair``, ``first_row`` (of splines), or nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastmlip.ops import _spline
from fastmlip.ops.radial_conv import radial_conv as radial_conv_operator
from fastmlip.ops.radial_conv import reference as radial_conv_reference
from fastmlip.problem import TensorProductProblem
from fastmlip.testing.cases import tensor_product_conv
from fastmlip.testing.cases.operator import Operator


class Problem(NamedTuple):
    """What the operator takes besides the inputs."""

    product: TensorProductProblem
    kind: str  # "own", "edge_pair" or "first_row"
    width: int  # columns of radial
    rows: int  # of weight
    depth: int = 0  # of the hidden layers

    def named(self, chosen: torch.Tensor) -> dict[str, Any]:
        """``chosen`` as the keyword argument that it is."""
        return {} if self.kind == "own" else {self.kind: chosen}


class Product(NamedTuple):
    """What tensor_product_conv.make_inputs reads of a case."""

    problem: TensorProductProblem


class Case(NamedTuple):
    """One row."""

    problem: Problem


class Inputs(NamedTuple):
    """Operands in the order of the operator; ``edge_dst`` receives."""

    x: torch.Tensor
    edge_attr: torch.Tensor
    radial: torch.Tensor
    weight: torch.Tensor
    edge_dst: torch.Tensor
    edge_src: torch.Tensor
    chosen: torch.Tensor
    hidden: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating operands in ``dtype``, indices as they are."""
        return Inputs(*(t.to(dtype) if t.is_floating_point() else t for t in self))


def radial_conv(*inputs: torch.Tensor, problem: Problem) -> torch.Tensor:
    """The operator on the operands of a case."""
    return radial_conv_operator(**_named(Inputs(*inputs), problem))


def reference(*inputs: torch.Tensor, problem: Problem) -> torch.Tensor:
    """The reference on the same operands."""
    return radial_conv_reference(**_named(Inputs(*inputs), problem))


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float64,
    nodes: int = 3,
    edges: int = 56,
    seed: int = 0,
    sorted: bool = False,
    index_dtype: torch.dtype = torch.int64,
    device: str = "cpu",
) -> Inputs:
    """As those of tensor_product_conv; pairs are any edges, not only reverses of each other."""
    problem = case.problem
    product_case: Any = Product(problem.product)
    product = tensor_product_conv.make_inputs(
        product_case, dtype, nodes, edges, seed, sorted, index_dtype, device
    )
    random = torch.Generator().manual_seed(seed + 1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(device, dtype)

    radial = normal(edges, problem.width)
    weight = normal(problem.rows, problem.product.weight_numel) / problem.width**0.5
    if problem.kind == "first_row":
        radial = torch.rand(edges, 1, generator=random, dtype=torch.float64).to(device, dtype)
        weight = _spline.table(weight)
    sizes = [(problem.rows if i else problem.width, problem.rows) for i in range(problem.depth)]
    layers = [normal(*size).flatten() / size[0] ** 0.5 for size in sizes]
    hidden = torch.cat(layers) if layers else normal(0)
    index = torch.arange(edges)
    if problem.kind == "first_row":
        index = torch.randint(0, problem.rows - _spline.DEGREE, (edges,), generator=random)
    elif edges > 1:
        order = torch.randperm(edges, generator=random)[: edges // 4 * 2].view(2, -1)
        index[order[1]] = order[0]  # a part of the edges in pairs
    return Inputs(
        product.x, product.edge_attr, radial, weight, product.edge_dst, product.edge_src,
        index.to(device), hidden,
    )  # fmt: skip


def _named(inputs: Inputs, problem: Problem) -> dict[str, Any]:
    """Keyword arguments; a gradient of the weights would be composed of other operators."""
    named = inputs._asdict()
    named["weight"], hidden = inputs.weight.detach(), named.pop("hidden").detach()
    chosen = problem.named(named.pop("chosen"))
    return {
        **named, **chosen, "problem": problem.product, "hidden": hidden if problem.depth else None,
    }  # fmt: skip


def _case(name: str, kind: str, width: int, rows: int | None = None, depth: int = 0) -> Case:
    product = tensor_product_conv.OPERATOR.cases[name].problem
    return Case(Problem(product, kind, width, rows or width, depth))


RADIAL_CONV = {
    "nequip-M-hidden, pairs": _case("nequip-M-hidden", "edge_pair", 128),
    "nequip-M-hidden, network": _case("nequip-M-hidden", "edge_pair", 8, 128, depth=1),
    "deep network": _case("odd-multiplicities", "edge_pair", 5, 11, depth=3),
    "network without pairs": _case("path-weights", "own", 1, 3, depth=2),
    "nequip-M-hidden, spline": _case("nequip-M-hidden", "first_row", 1, 69),
    "own weights": _case("path-weights", "own", 13),
    "odd multiplicities, pairs": _case("odd-multiplicities", "edge_pair", 7),
    "odd multiplicities, spline": _case("odd-multiplicities", "first_row", 1, 9),
    "blocks and a half, spline": _case("nequip-M-last", "first_row", 1, 40),
    "one interval, spline": _case("shared-output", "first_row", 1, 6),
    "one weight, pairs": _case("path-weights", "edge_pair", 1),
}


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    return _named(inputs, case.problem)


OPERATOR = Operator(
    radial_conv, reference, make_inputs, RADIAL_CONV, arguments,
    {"nodes": 37, "edges": 3300}, {"nodes": 3, "edges": 8},
)  # fmt: skip
