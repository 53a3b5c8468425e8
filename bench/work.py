"""Operations and compulsory bytes of a model's energy and forces, counted while it runs eager.

The matrix products that torch runs count as torch's ``FlopCounterMode`` counts them; the formulas
of fastmlip's operators stand here. They are what the problem needs with each thing done once: the
rows of a radial network for each pair of edges and those of splines for each edge, forward and
backward, whatever a kernel makes again. Bytes are the operands and results of fastmlip's operators.
What is not a product or a path counts no operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastmlip.problem import PATH_FIELDS

KEPT = 10  # which operand of radial_conv_backward_cpu these rows are


class Work(NamedTuple):
    """Floating-point operations, and bytes read and written."""

    flops: int
    moved: int


def count(function: Callable[[], Any]) -> Work:
    """Of one call."""
    with _Counter() as counter:
        function()
    return Work(counter.flops, counter.moved)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if formula := flop_registry.get(function.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        if function.namespace == "fastmlip":
            self.flops += FORMULAS[function.overloadpacket.__name__](*args)
            operands, results = _without_scratch(function.overloadpacket.__name__, args, result)
            tensors = [t for t in tree_leaves((operands, results)) if torch.is_tensor(t)]
            self.moved += sum(t.numel() * t.element_size() for t in tensors)
        return result


def _without_scratch(name: str, operands: Any, results: Any) -> tuple[Any, Any]:
    """Without the rows that radial_conv keeps from its forward to its backward pass."""
    if name == "radial_conv_cpu":
        return operands, results[0]
    if name == "radial_conv_backward_cpu":
        return operands[:KEPT] + operands[KEPT + 1 :], results
    return operands, results


def _paths(tables: torch.Tensor) -> int:
    """Of an edge, as ``TensorProductProblem.flops_per_edge`` counts it."""
    blocks1, _, blocks3, paths, _, _, _ = header = tables[:7].tolist()
    begin, fields = len(header) + 2 * (blocks1 + blocks3), len(PATH_FIELDS)
    rows = tables[begin : begin + paths * fields].view(paths, fields)
    return int((2 * rows[:, 0] * rows[:, 1] * rows[:, 3]).sum())


def _radial(radial, weight, hidden, edge_pair, first_row) -> int:
    """The rows of ``w`` of all edges or pairs, or the gradient of ``radial`` from theirs."""
    rows = radial.shape[0] if edge_pair is None else edge_pair.unique().numel()
    if first_row is not None:
        return 2 * rows * 6 * weight.shape[0] * weight.shape[2]
    return 2 * rows * (weight.numel() + (0 if hidden is None else hidden.numel()))


def _conv(x, edge_attr, radial, weight, hidden, edge_pair, first_row, order, tables, *_) -> int:
    edges = edge_attr.shape[0] * _paths(tables)
    return edges + _radial(radial, weight, hidden, edge_pair, first_row)


def _conv_backward(
    grad, x, edge_attr, radial, weight, hidden, edge_pair, first_row, order, tables, *_
) -> int:
    edges = 3 * edge_attr.shape[0] * _paths(tables)
    return edges + _radial(radial, weight, hidden, edge_pair, first_row)


def _linear(x, weight, types, tables, *_) -> int:
    paths = tables[6:].view(-1, 6)  # in, mul_in, out, mul_out, dim, weight
    return 2 * x.shape[0] * int((paths[:, 1] * paths[:, 3] * paths[:, 4]).sum())


def _polynomial(x, along, coefficients, types, tables, outputs) -> int:
    """Sums over terms, and over pairs of their factors."""
    rows = tables[5 : 5 + 4 * coefficients.shape[1]].view(-1, 4)
    sums = rows.shape[0] + rows[:, :3].unique(dim=0).shape[0]
    return 2 * (1 if along is None else 2) * x.shape[0] * x.shape[2] * sums


def _polynomial_dx(grad, x, along, coefficients, types, tables) -> int:
    """Sums over terms, and the slopes of each monomial."""
    rows = tables[5 : 5 + 4 * coefficients.shape[1]].view(-1, 4)
    sums = rows.shape[0] + 2 * rows[:, 1:].unique(dim=0).shape[0]
    return 2 * (1 if along is None else 2) * x.shape[0] * x.shape[2] * sums


def _mlp(x, x2, weights, *_) -> int:
    return 2 * x.shape[0] * weights.numel()


def _mlp_backward(grad, grad2, x, x2, weights, kept, widths, split, wants_dweights) -> int:
    return (2 if wants_dweights else 1) * _mlp(x, x2, weights)


FORMULAS: dict[str, Callable[..., int]] = {
    "radial_conv_cpu": _conv,
    "radial_conv_backward_cpu": _conv_backward,
    "irreps_linear_cpu": _linear,
    "symmetric_contraction_cpu": _polynomial,
    "symmetric_contraction_dx_cpu": _polynomial_dx,
    "scalar_mlp_cpu": _mlp,
    "scalar_mlp_backward_cpu": _mlp_backward,
}
UNCOUNTED = (
    "gate_cpu", "gate_backward_cpu", "edge_embedding_cpu", "edge_embedding_backward_cpu",
    "edge_vectors_cpu", "edge_vectors_backward_cpu", "scale_shift_cpu", "edge_order_cpu",
    "edge_pair_cpu",
)  # fmt: skip
FORMULAS |= dict.fromkeys(UNCOUNTED, lambda *_: 0)
