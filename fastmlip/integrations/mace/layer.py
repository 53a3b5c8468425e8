"""An interaction of MACE's and the product that follows it, in one forward.

The modules stay where they are and keep the weights. Between them rows are in the layout that the
convolution computes in: the reshape between the interaction and the product is gone. What is linear
in the one-hot attributes of nodes is one map for each type that occurs, and the first layer's node
features, which depend on the type alone, are made once for each.

MACE's ``edge_index[0]`` are senders and ``edge_index[1]`` receivers, the other way round than in
NequIP and SevenNet.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from e3nn.o3 import Irreps

from fastmlip import ops
from fastmlip.integrations import e3nn_networks, inner, linear
from fastmlip.integrations.mace.contraction import FoldedContraction
from fastmlip.nn.radial_spline import RadialSpline
from fastmlip.nn.tensor_product_conv import TensorProductConv
from fastmlip.problem import TensorProductProblem

Tensor = torch.Tensor
KINDS = {
    "RealAgnosticInteractionBlock", "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock", "RealAgnosticDensityResidualInteractionBlock",
}  # fmt: skip


class Parts(NamedTuple):
    """The modules of a layer."""

    interaction: Any
    product: Any

    @property
    def is_residual(self) -> bool:
        """Whether its self-connection goes round the product."""
        return "Residual" in inner.kind(self.interaction)

    @property
    def has_density(self) -> bool:
        """Whether messages are divided by a learned density of neighbours."""
        return "Density" in inner.kind(self.interaction)


class Shared(NamedTuple):
    """What the layers of a model have in common, in one call of it.

    ``types`` are those that occur, ``kind [N]`` says which of them an atom has; ``order`` and
    ``pair`` are :func:`fastmlip.ops.edge_order` and, where an edge and its reverse may share a
    gradient, :func:`fastmlip.ops.edge_pair`; ``first_row`` is that of the splines of tabulated
    models. ``frozen``: nobody will ask for gradients of weights.
    """

    types: Tensor
    kind: Tensor
    order: Tensor
    pair: Tensor | None
    first_row: Tensor | None
    frozen: bool

    def taken(self, weight: Tensor) -> Tensor:
        return weight.detach() if self.frozen else weight


class Edges(NamedTuple):
    """``edge_index [2, E]``, harmonics ``[E, (l_max + 1)^2]``, radial basis ``[E, B]``, and what
    the splines of tabulated models take in its place, ``[E, 1]``; ``[E, 0]`` in others."""

    edge_index: Tensor
    attrs: Tensor
    radial: Tensor
    place: Tensor


class Layer(torch.nn.Module):
    """The forward of a layer. It has no weights: it is given the modules at every call."""

    spline: RadialSpline | None

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        block, product = parts
        problem = TensorProductProblem.from_e3nn(block.conv_tp)
        problem = dataclasses.replace(problem, layout="ir_mul")
        self.convolution = TensorProductConv.from_problem(problem)
        self.linear_up = linear.FoldedLinear(block.linear_up, layout_out="ir_mul")
        self.linear = linear.FoldedLinear(
            block.linear, irreps_in=problem.irreps_out, layout_in="ir_mul", layout_out="ir_mul"
        )
        inside = "mul_ir" if parts.is_residual else "ir_mul"
        self.skip = linear.TypedLinear(block.skip_tp, inside, inside)
        self.contraction = FoldedContraction(product.symmetric_contractions)
        self.output = linear.FoldedLinear(product.linear, layout_in="ir_mul")
        self.is_agnostic = bool(getattr(product, "use_agnostic_product", False))
        self.spline = None

    def forward(
        self, parts: Parts, x: Tensor, by_type: bool, edges: Edges, shared: Shared
    ) -> Tensor:
        """New node features ``[N, target_irreps.dim]``.

        Args:
            parts: the modules.
            x: node features ``[N, node_feats_irreps.dim]``, or one row for each of the types that
                occur where ``by_type``.
            by_type: of the first layer.
            edges: of the call.
            shared: of the call.
        """
        block, product = parts
        kept = None
        if parts.is_residual:
            own = torch.arange(len(shared.types), device=x.device) if by_type else shared.kind
            kept = self.skip.map(x, self._of_types(block.skip_tp, shared), own)
        up = self.linear_up.map(x, shared.taken(self.linear_up.fold(block.linear_up)))
        if by_type:
            up = up.index_select(0, shared.kind)
            kept = None if kept is None else kept.index_select(0, shared.kind)
        message = self._message(block, up, edges, shared)
        weight = self.linear.fold(block.linear)
        if not parts.has_density:
            weight = weight / block.avg_num_neighbors
        message = self.linear.map(message, shared.taken(weight))
        if parts.has_density:
            message = message / (self._density(block, edges, len(up)) + 1)
        if not parts.is_residual:
            message = self.skip.map(message, self._of_types(block.skip_tp, shared), shared.kind)
        types, kind = shared.types, shared.kind
        if self.is_agnostic:
            types, kind = torch.zeros_like(types[:1]), torch.zeros_like(kind)
        out = self.contraction(product.symmetric_contractions, message, types, kind, shared.taken)
        out = self.output.map(out, shared.taken(self.output.fold(product.linear)))
        return out if kept is None or not product.use_sc else out + kept

    def _of_types(self, skip: Any, shared: Shared) -> Tensor:
        return shared.taken(self.skip.rows(skip, shared.types))

    def _message(self, block: Any, x: Tensor, edges: Edges, shared: Shared) -> Tensor:
        hidden: Tensor | None = None
        radial = edges.radial
        if self.spline is None:
            hidden, table = e3nn_networks.hidden_and_last(block.conv_tp_weights)
            hidden = None if hidden is None else shared.taken(hidden)
        else:
            table, radial = self.spline.table, edges.place
        sender, receiver = edges.edge_index[0], edges.edge_index[1]
        return ops.radial_conv(
            x, edges.attrs, radial, shared.taken(table), receiver, sender, self.convolution.problem,
            self.convolution.tables, shared.pair, shared.first_row, shared.order, hidden,
        )  # fmt: skip

    def _density(self, block: Any, edges: Edges, num_nodes: int) -> Tensor:
        """``[N, 1]``"""
        of_edges = torch.tanh(block.density_fn(edges.radial) ** 2)
        return of_edges.new_zeros(num_nodes, 1).index_add(0, edges.edge_index[1], of_edges)


def unsupported(parts: Parts) -> str:
    """Why the forward of this layer cannot be run in one; empty where it can."""
    block, product = parts
    if inner.kind(block) not in KINDS:
        return f"it is a {inner.kind(block)}, which fastmlip does not accelerate"
    if inner.kind(product) != "EquivariantProductBasisBlock":
        return f"its product is a {inner.kind(product)}"
    for name in ("cueq_config", "oeq_config"):
        if getattr(block, name, None) or getattr(product, name, None):
            return f"it has a {name}: another accelerated kernel runs already"
    if hasattr(block, "conv_fusion"):
        return "its convolution is fused by another accelerated kernel already"
    for name in ("linear_up", "linear"):
        if reason := _no_linear(getattr(block, name), name):
            return reason
    if reason := _no_linear(product.linear, "linear of its product"):
        return reason
    if inner.kind(block.skip_tp) != "FullyConnectedTensorProduct":
        return f"its skip_tp is a {inner.kind(block.skip_tp)}"
    if len(block.skip_tp.irreps_in2) != 1:
        return f"the types of its skip_tp are {block.skip_tp.irreps_in2}, not one block"
    if inner.kind(block.conv_tp) != "TensorProduct":
        return f"its conv_tp is a {inner.kind(block.conv_tp)}, not a TensorProduct"
    try:
        TensorProductProblem.from_e3nn(block.conv_tp)
    except (AttributeError, ValueError) as error:
        return str(error)
    muls = {mul for mul, _ in Irreps(str(block.irreps_out))}
    if len(muls) != 1:
        return f"the channels of its irreps {block.irreps_out} are several"
    parts_of = [
        (name, m) for p in parts for name, m in p.named_modules() if "density_fn" not in name
    ]
    return (
        e3nn_networks.unsupported(block.conv_tp_weights, "conv_tp_weights")
        or FoldedContraction.unsupported(product.symmetric_contractions)
        or inner.why_not(parts_of)
    )


def _no_linear(module: Any, name: str) -> str:
    if inner.kind(module) != "Linear":
        return f"its {name} is a {inner.kind(module)}, not a Linear"
    return linear.unsupported(module)
