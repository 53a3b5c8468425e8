"""Allegro's ``MakeWeightedChannels``, which our operators take the place of."""

from __future__ import annotations

from typing import Any


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
