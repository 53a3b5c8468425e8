"""Weights of channels and irreps in the order of our operators.

Allegro's linear maps end in columns ``(channel, irrep)``, ours take ``(irrep, channel)``: rows of
neighbouring channels lie side by side in memory. It is the map's matrix that is put in order, once
a call, not what it gives for every edge.
"""

from __future__ import annotations

from typing import Any

import torch

FACTORS = "_fastmlip_tensor_embed_weights"  # [E, irreps, U], of the first layer's operand


def weights(mlp: Any, x: torch.Tensor, first: int, irreps: int) -> list[torch.Tensor]:
    """The first columns of ``mlp(x)``, ``[E, first]`` where there are any; the others as ``[E,
    irreps, U]`` where there are any."""
    *before, last = mlp.mlp
    for layer in before:
        x = layer(x)
    matrix = last.weight * last.alpha
    results = []
    if first:
        results.append(x @ matrix[:, :first])
    if first < matrix.shape[1]:
        ordered = matrix[:, first:].unflatten(1, (-1, irreps)).mT.flatten(1)
        results.append((x @ ordered).unflatten(1, (irreps, -1)))
    return results


def unsupported(mlp: Any, name: str) -> str:
    """Why :func:`weights` cannot be made of a module; empty where they can."""
    layers = getattr(mlp, "mlp", None)
    if not isinstance(layers, torch.nn.Sequential) or not len(layers):
        return f"its {name} is not layers, one after the other"
    last: Any = layers[-1]
    if not hasattr(last, "weight") or not hasattr(last, "alpha"):
        return f"its {name} ends in a {type(last).__name__}, not in a scaled linear layer"
    if getattr(last, "bias", None) is not None:
        return f"its {name} ends in a layer with a bias"
    return ""


def unsupported_weighter(weighter: Any) -> str:
    """Why a ``MakeWeightedChannels`` cannot be taken over; empty where it can."""
    missing = [n for n in ("alpha", "weight_individual_irreps", "weight_numel", "multiplicity_out")
               if not hasattr(weighter, n)]  # fmt: skip
    if missing:
        return f"an unknown version of MakeWeightedChannels, without {', '.join(missing)}"
    return "" if weighter.alpha == 1.0 else f"its weights are scaled by {weighter.alpha}"


def irreps_of(weighter: Any) -> int:
    """Weights of each channel."""
    return weighter.weight_numel // weighter.multiplicity_out
