"""NequIP's ``ScalarMLPFunction`` on :func:`fastmlip.ops.scalar_mlp`.

Allegro's linear maps that make weights of tensor features end in columns ``(channel, irrep)``; our
operators take ``(irrep, channel)``, so that rows of neighbouring channels lie side by side in
memory. It is the last matrix that is put in order, once a call, not what it gives for every edge.
"""

from __future__ import annotations

from typing import Any

import torch

from fastmlip.integrations import inner
from fastmlip.nn import scalar_mlp

Tensor = torch.Tensor


def apply(mlp: Any, x: Tensor) -> Tensor:
    """``mlp(x)``, ``[rows, columns]``."""
    if not _has_silu(mlp):
        return mlp(x)
    out: Any = scalar_mlp.apply(x, _matrices(mlp))
    return out


def with_weights(
    mlp: Any, x: Tensor, first: int, irreps: int, x2: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The first columns of ``mlp`` of the rows ``[x, x2]``, ``[E, first]``, and the others as
    weights of channels, ``[E, irreps, U]``."""
    matrices = _matrices(mlp)
    matrices[-1] = _ordered(matrices[-1], first, irreps)
    if _has_silu(mlp):
        own, weights = scalar_mlp.apply(x, matrices, x2, first)
    else:
        row = x if x2 is None else torch.cat([x, x2], 1)
        for layer in list(mlp.mlp)[:-1]:
            row = layer(row)
        own, weights = (row @ matrices[-1]).split([first, matrices[-1].shape[1] - first], 1)
    return own, weights.unflatten(1, (irreps, weights.shape[1] // irreps))


def _matrices(mlp: Any) -> list[Tensor]:
    return [layer.weight * layer.alpha for layer in list(mlp.mlp)[::2]]


def _ordered(matrix: Tensor, first: int, irreps: int) -> Tensor:
    if first == matrix.shape[1]:
        return matrix
    weights = matrix[:, first:].unflatten(1, (-1, irreps)).mT.flatten(1)
    return torch.cat([matrix[:, :first], weights], 1) if first else weights


def _has_silu(mlp: Any) -> bool:
    return all(type(layer) is torch.nn.SiLU for layer in list(mlp.mlp)[1::2])


def unsupported(mlp: Any, name: str) -> str:
    """Why a ``ScalarMLPFunction`` cannot be taken over; empty where it can."""
    if inner.kind(mlp) != "ScalarMLPFunction":
        return f"its {name} is a {inner.kind(mlp)}, not a ScalarMLPFunction"
    layers = getattr(mlp, "mlp", None)
    if not isinstance(layers, torch.nn.Sequential) or len(layers) % 2 == 0:
        return f"its {name} is not layers with activations between them"
    for layer in list(layers)[::2]:
        if not hasattr(layer, "weight") or not hasattr(layer, "alpha"):
            return f"its {name} has a {type(layer).__name__}, not a scaled linear layer"
        if getattr(layer, "bias", None) is not None:
            return f"its {name} has a layer with a bias"
    return ""
