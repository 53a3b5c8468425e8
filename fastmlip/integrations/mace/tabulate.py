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
from fastmlip.integrations.host import TOLERANCE
from fastmlip.integrations.mace import models
from fastmlip.integrations.mace.network import FastMACE, fuses_basis, kinds
from fastmlip.integrations.refine import LARGE, ROUNDINGS, positive, refine, refuse_states
from fastmlip.nn.radial_spline import RadialSpline

Tensor = torch.Tensor
USUAL = 10.0  # eV/Angstrom, of structures that are simulated


def has_tables(model: torch.nn.Module) -> bool:
    """Whether there is something to tabulate in an accelerated model."""
    return any(isinstance(module, FastMACE) for module in model.modules())


def tabulate_(model: Any, tol: float | None, structures: Iterable[Any] | None) -> None:
    """Tabulate an accelerated model in place; :func:`fastmlip.tabulate` describes it."""
    tol = positive(TOLERANCE if tol is None else tol)
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
    network.requires_grad_(False).eval()
    blocks = [parts.interaction for parts in plan.layers]
    functions = [partial(_weights, *_in_float64(network, block)) for block in blocks]

    def forget() -> None:
        for layer in network.fast_layers:
            layer.spline = None

    def fit(intervals: int) -> None:
        for layer, function in zip(network.fast_layers, functions, strict=True):
            layer.spline = RadialSpline(RadialSpline.fit(function, intervals).to(network.r_max))

    forget()  # of a model that has tables: forces are compared with those of its networks
    try:
        roundings = ROUNDINGS * (1 + len(blocks))
        host = models.host_model(network)
        found = refine(host, fit, tol, structures, roundings=roundings, large=LARGE, usual=USUAL)
    except BaseException:
        forget()
        raise
    errors = [
        RadialSpline.error(layer.spline.coefficients(), function)
        for layer, function in zip(network.fast_layers, functions, strict=True)
    ]
    network.table_metadata = found.metadata(tol, errors)
    network.tabulated, network.look = kinds(network), inner.Look()
    refuse_states(network)


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
