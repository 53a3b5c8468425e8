"""A layer of SevenNet's, six modules one after the other, in one forward.

The modules stay where they are and keep the weights. Between the two linear maps, rows are in the
layout that the convolution computes in; the first map has 1 / denominator in its weights; the
self-connection is one linear map for each type that occurs. After
:mod:`~fastmlip.integrations.sevennet.tabulate`, a spline stands for the radial network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from e3nn.o3 import Irreps

from fastmlip import ops
from fastmlip.integrations import e3nn_networks, inner, linear
from fastmlip.integrations.sevennet import convolution
from fastmlip.nn.radial_spline import RadialSpline
from fastmlip.nn.tensor_product_conv import TensorProductConv

Tensor = torch.Tensor
KINDS = (
    ("SelfConnectionIntro", "SelfConnectionLinearIntro"), ("IrrepsLinear",),
    ("FastIrrepsConvolution",), ("IrrepsLinear",), ("SelfConnectionOutro",), ("EquivariantGate",),
)  # fmt: skip


class Parts(NamedTuple):
    """The modules of a layer, in their order."""

    intro: Any
    linear_1: Any
    conv: Any
    linear_2: Any
    outro: Any
    gate: Any

    def inside(self) -> list[torch.nn.Module]:
        """The modules that :class:`InteractionLayer` does not call, themselves and in them."""
        operator = _operator(self.intro)
        linears = [self.linear_1.linear, self.linear_2.linear]
        return [*self, operator, *linears, *convolution.parts(self.conv)]


class Shared(NamedTuple):
    """What the layers of a model have in common, in one call of it.

    ``order`` and ``pair`` are :func:`fastmlip.ops.edge_order` and, where an edge and its reverse
    may share a gradient, :func:`fastmlip.ops.edge_pair`; ``first_row`` is that of the splines of
    tabulated models; ``types`` those that occur, and ``kind`` which of them an atom has, both None
    where no layer asks. ``frozen``: nobody will ask for gradients of weights.
    """

    order: Tensor
    pair: Tensor | None
    first_row: Tensor | None
    types: Tensor | None
    kind: Tensor | None
    frozen: bool


class InteractionLayer(torch.nn.Module):
    """The forward of a layer. It has no weights: it is given the modules at every call."""

    spline: RadialSpline | None

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        problem = dataclasses.replace(parts.conv.product.problem, layout="ir_mul")
        self.product = TensorProductConv.from_problem(problem)
        irreps_in = Irreps(str(problem.irreps_out)) + _of_modalities(parts.linear_2)
        self.linear_1 = linear.FoldedLinear(parts.linear_1.linear, layout_out="ir_mul")
        self.linear_2 = linear.FoldedLinear(
            parts.linear_2.linear, irreps_in=irreps_in, layout_in="ir_mul"
        )
        fold = linear.TypedLinear if folds_types(parts) else linear.FoldedLinear
        self.self_connection = fold(_operator(parts.intro))
        self.spline = None

    def forward(self, parts: Parts, data: Any, shared: Shared) -> Any:
        """``data`` with new node features."""
        key, conv, sc = parts.conv.key_x, parts.conv, self.self_connection
        x = data[key]
        if isinstance(sc, linear.TypedLinear):
            types: Any = shared.types
            weight = sc.rows(parts.intro.fc_tensor_product, types)
            kept = sc.map(x, _taken(weight, shared), shared.kind)
        else:
            kept = sc.map(x, _taken(sc.fold(parts.intro.linear), shared))
        weight = self.linear_1.fold(parts.linear_1.linear) / conv.denominator
        x = self.linear_1.map(_with_modality(parts.linear_1, x, data), _taken(weight, shared))
        if self.spline is None:
            hidden, table = e3nn_networks.hidden_and_last(conv.weight_nn)
            hidden = None if hidden is None else _taken(hidden, shared)
        else:
            hidden, table = None, self.spline.table
        edge_index = data[conv.key_edge_idx]
        x = ops.radial_conv(
            x, data[conv.key_filter], data[conv.key_weight_input], _taken(table, shared),
            edge_index[0], edge_index[1], self.product.problem, self.product.tables, shared.pair,
            shared.first_row, shared.order, hidden,
        )  # fmt: skip
        weight = self.linear_2.fold(parts.linear_2.linear)
        x = self.linear_2.map(_with_modality(parts.linear_2, x, data), _taken(weight, shared))
        data[key] = parts.gate.gate(x + kept)
        return data


def _taken(weight: Tensor, shared: Shared) -> Tensor:
    return weight.detach() if shared.frozen else weight


def _operator(intro: Any) -> Any:
    is_typed = inner.kind(intro) == "SelfConnectionIntro"
    return intro.fc_tensor_product if is_typed else intro.linear


def folds_types(parts: Parts) -> bool:
    """Whether its self-connection is one linear map for each type."""
    return inner.kind(parts.intro) == "SelfConnectionIntro"


def _of_modalities(module: Any) -> Irreps:
    return Irreps(f"{module.num_modalities}x0e" if module.num_modalities > 1 else "")


def _with_modality(module: Any, x: Tensor, data: Any) -> Tensor:
    """Rows of an ``IrrepsLinear`` with the modality behind them, where it takes one; as scalars,
    they are the same in both layouts."""
    if module.num_modalities > 1:
        data[module.key_input] = x
        x = module._patch_modal_to_data(data)[module.key_input]
    return x


def layers(row: Sequence[torch.nn.Module]) -> dict[int, Parts]:
    """The layers in a row of modules, by the place of their first."""
    kinds, found = [inner.kind(module) for module in row], {}
    for at in range(len(row) - len(KINDS) + 1):
        if all(kind in known for kind, known in zip(kinds[at:], KINDS, strict=False)):
            found[at] = Parts(*row[at : at + len(KINDS)])
    return found


def unsupported(parts: Parts) -> str:
    """Why the forward of this layer cannot be run in one; empty where it can."""
    if parts.conv.is_parallel:
        return "its convolution has ghost atoms"
    keys = {
        parts.intro.key_x, parts.linear_1.key_input, parts.linear_1.key_output, parts.conv.key_x,
        parts.linear_2.key_input, parts.linear_2.key_output, parts.outro.key_x, parts.gate.key_x,
    }  # fmt: skip
    if len(keys) > 1:
        return f"its modules read and write several fields, {', '.join(sorted(keys))}"
    for name, module in (("linear_1", parts.linear_1), ("linear_2", parts.linear_2)):
        if inner.kind(module.linear) != "Linear":
            return f"the map of its {name} is a {inner.kind(module.linear)}, not a Linear"
        if reason := linear.unsupported(module.linear):
            return reason
    operator = _operator(parts.intro)
    if folds_types(parts):
        if inner.kind(operator) != "FullyConnectedTensorProduct":
            return f"its self-connection is a {inner.kind(operator)}"
        if len(operator.irreps_in2) != 1:
            return f"the types of its self-connection are {operator.irreps_in2}, not one block"
    elif inner.kind(operator) != "Linear" or linear.unsupported(operator):
        return linear.unsupported(operator) or f"its self-connection is a {inner.kind(operator)}"
    named = [("", module) for module in parts.inside()]
    return convolution.unsupported_parts(parts.conv) or inner.why_not(named)
