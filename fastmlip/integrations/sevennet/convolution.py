"""SevenNet's ``IrrepsConvolution`` on :func:`fastmlip.ops.radial_conv`.

What takes its place is of a class derived from the host's own, with the same modules inside. In a
model, the layer around it runs in one forward (:mod:`~fastmlip.integrations.sevennet.layer`); by
itself, as in LAMMPS ML-IAP, it takes and returns what the host's does.
"""

from __future__ import annotations

from typing import Any

import torch

from fastmlip import ops
from fastmlip.integrations import e3nn_networks, inner
from fastmlip.integrations.derived import Derived, derive, has_kernels
from fastmlip.nn.tensor_product_conv import TensorProductConv
from fastmlip.problem import TensorProductProblem

HOST_ATTRIBUTES = (
    "convolution", "weight_nn", "denominator", "key_x", "key_filter", "key_weight_input",
    "key_edge_idx", "is_parallel",
)  # fmt: skip

Tensor = torch.Tensor


class FastIrrepsConvolution(Derived):
    """What the derived class has in place of the host's."""

    product: TensorProductConv
    layer: Any  # an InteractionLayer, where a model runs the layer in one forward
    look: inner.Look

    def forward(self: Any, data: Any) -> Any:
        """``data`` with new node features, ``[N, irreps_out.dim]``."""
        x = data[self.key_x]
        if not has_kernels(x) or self.altered():
            return super().forward(data)  # type: ignore[misc]
        if self.is_parallel:
            x = torch.cat([x, data["x_ghost"]])
        hidden, weight = e3nn_networks.hidden_and_last(self.weight_nn)
        edge_dst, edge_src = data[self.key_edge_idx][0], data[self.key_edge_idx][1]
        x = ops.radial_conv(
            x, data[self.key_filter], data[self.key_weight_input], weight, edge_dst, edge_src,
            self.product.problem, self.product.tables, hidden=hidden,
        )  # fmt: skip
        x = x.div(self.denominator)
        if self.is_parallel:
            x = torch.tensor_split(x, data["nlocal"])[0]
        data[self.key_x] = x
        return data

    def altered(self: Any) -> str:
        """What was put inside after the swap and needs the host's forward to run; empty where there
        is nothing."""
        return self.look(lambda: (unsupported_parts(self), parts(self)))


def parts(conv: Any) -> list[torch.nn.Module]:
    """Modules inside that its own forward does not call."""
    return [conv, conv.convolution, *conv.weight_nn.modules()]


def unsupported(module: torch.nn.Module) -> str:
    """Why an ``IrrepsConvolution`` cannot be swapped; empty where it can."""
    missing = [name for name in HOST_ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"an unknown version of SevenNet's class, without {', '.join(missing)}"
    return unsupported_parts(module)


def unsupported_parts(conv: Any) -> str:
    """Why modules inside cannot be passed by; empty where they can."""
    if inner.kind(conv.convolution) != "TensorProduct":
        return f"its convolution is a {inner.kind(conv.convolution)}, not a TensorProduct"
    try:
        TensorProductProblem.from_e3nn(conv.convolution)
    except (AttributeError, ValueError) as error:
        return str(error)
    return e3nn_networks.unsupported(conv.weight_nn, "weight_nn") or inner.why_not(
        [("convolution", conv.convolution)]
    )


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    new = derive(FastIrrepsConvolution, old)
    host: Any = old
    problem = TensorProductProblem.from_e3nn(host.convolution)
    new.product = TensorProductConv.from_problem(problem)
    new.layer, new.look = None, inner.Look()
    return new
