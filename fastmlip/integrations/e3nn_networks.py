"""e3nn's ``FullyConnectedNet``, the radial network of several hosts, as the matrices that
:func:`fastmlip.ops.radial_conv` takes.

A layer is ``act(row @ weight / sqrt(h_in))``, and ``act`` is silu times a constant that gives it a
second moment of one: constants go into the matrix behind them.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fastmlip.integrations import inner

Tensor = torch.Tensor


def matrices(network: Any) -> list[Tensor]:
    """Those of all layers, each ``[h_in, h_out]``, with silu between them."""
    found, factor = [], 1.0
    for layer in network.children():
        found.append(layer.weight * (factor / math.sqrt(layer.h_in * layer.var_in)))
        factor = math.sqrt(layer.var_out) * (1.0 if layer.act is None else _constant(layer.act))
    found[-1] = found[-1] * factor
    return found


def hidden_and_last(network: Any) -> tuple[Tensor | None, Tensor]:
    """``hidden`` and ``weight`` of :func:`fastmlip.ops.radial_conv`."""
    *hidden, last = matrices(network)
    return torch.cat([matrix.flatten() for matrix in hidden]) if hidden else None, last


def _constant(act: Any) -> float:
    return 1.0 if act._is_id else float(act.cst)


def unsupported(network: Any, name: str) -> str:
    """Why a ``FullyConnectedNet`` cannot be taken over; empty where it can."""
    if inner.kind(network) != "FullyConnectedNet":
        return f"its {name} is a {inner.kind(network)}, not a FullyConnectedNet"
    layers: list[Any] = list(network.children())
    if not layers or any(inner.kind(layer) != "_Layer" for layer in layers):
        return f"its {name} has other modules than layers"
    if layers[-1].act is not None:
        return f"its {name} ends in an activation"
    for layer in layers[:-1]:
        if getattr(layer.act, "f", None) is not torch.nn.functional.silu:
            return f"its {name} has activations that are not silu"
    if len({layer.weight.shape[1] for layer in layers[:-1]}) > 1:
        return f"hidden layers of its {name} have several widths"
    return inner.why_not((f"{name}.{path}", module) for path, module in network.named_modules())
