"""Splines in the place of the radial networks of a MACE model, refined until forces agree.

Weights of a layer's convolution are a function of the distance alone, unless distances are
transformed by something that depends on the types of atoms.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from fastmlip.integrations import inner
from fastmlip.integrations.mace import models
from fastmlip.integrations.mace.network import FastMACE, fuses_basis
from fastmlip.integrations.whole_model import Function, put_tables
from fastmlip.nn.radial_spline import RadialSpline

Tensor = torch.Tensor


def has_tables(model: torch.nn.Module) -> bool:
    """Whether there is something to tabulate in an accelerated model."""
    return any(isinstance(module, FastMACE) for module in model.modules())


def tabulate_(model: Any, tol: float | None, structures: Iterable[Any] | None) -> None:
    """Tabulate an accelerated model in place; :func:`fastmlip.tabulate` describes it."""
    if not isinstance(model, FastMACE):
        raise ValueError(f"model: expected a whole model of MACE's, got {type(model).__name__}")
    network: Any = model
    network.tabulated, network.look = [], inner.Look()
    plan = network.plan()
    why = plan.reason
    if not why and not fuses_basis(network.radial_embedding):
        why = "its radial basis is not made of Bessel functions of the plain distance"
    if why:
        raise ValueError(f"model: it cannot be tabulated: {why}")
    layers = list(network.fast_layers)
    functions: list[Function] = [
        partial(_weights, *_in_float64(network, parts.interaction)) for parts in plan.layers
    ]

    def forget() -> None:
        for layer in layers:
            layer.spline = None

    def fit(intervals: int) -> None:
        for layer, function in zip(layers, functions, strict=True):
            layer.spline = RadialSpline(RadialSpline.fit(function, intervals).to(network.r_max))

    host, pieces = models.host_model(network), [[function] for function in functions]
    put_tables(network, host, layers, pieces, fit, forget, tol, structures)


def _in_float64(network: Any, block: Any) -> tuple[Any, Any, Any]:
    """Radial network, basis and cutoff of a layer."""
    embedding = network.radial_embedding
    parts = block.conv_tp_weights, embedding.bessel_fn, embedding.cutoff_fn
    return tuple(copy.deepcopy(part).double().cpu() for part in parts)  # type: ignore[return-value]


def _weights(weight_nn: Any, basis: Any, cutoff: Any, x: Tensor) -> Tensor:
    """Of distances over r_max ``[n]``, also 0 and below."""
    r = (x * cutoff.r_max).unsqueeze(1)
    roots = basis.bessel_weights
    bessel = basis.prefactor * roots * torch.sinc(roots * r / torch.pi)
    envelope = cutoff.calculate_envelope(r, cutoff.r_max, cutoff.p)
    return weight_nn(bessel * envelope)
