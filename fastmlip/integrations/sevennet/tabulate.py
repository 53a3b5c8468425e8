"""Splines in the place of the radial networks of a SevenNet model, refined until forces agree.

Weights of a layer's convolution are a function of the distance alone. An XPLOR cutoff has a jump in
its second derivative at ``cutoff_on``: there the range is cut in two, each with a grid of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from fastmlip.integrations import inner
from fastmlip.integrations.sevennet import models
from fastmlip.integrations.sevennet.edge_embedding import FastEdgeEmbedding
from fastmlip.integrations.sevennet.network import FastAtomGraphSequential
from fastmlip.integrations.whole_model import Function, put_tables
from fastmlip.nn.radial_spline import RadialSpline

Tensor = torch.Tensor


def has_tables(model: torch.nn.Module) -> bool:
    """Whether there is something to tabulate in an accelerated model."""
    return any(isinstance(module, FastAtomGraphSequential) for module in model.modules())


def tabulate_(model: Any, tol: float | None, structures: Iterable[Any] | None) -> None:
    """Tabulate an accelerated model in place; :func:`fastmlip.tabulate` describes it."""
    if not isinstance(model, FastAtomGraphSequential):
        raise ValueError(f"model: expected a whole model of SevenNet's, got {type(model).__name__}")
    network: Any = model
    network.tabulated, network.look = [], inner.Look()
    plan = network.plan()
    embeddings = [m for m in network if isinstance(m, FastEdgeEmbedding)]
    if plan.reason or len(embeddings) != 1:
        why = plan.reason or f"it has {len(embeddings)} edge embeddings that fastmlip accelerates"
        raise ValueError(f"model: it cannot be tabulated: {why}")
    (embedding,) = embeddings
    convs = [step.conv for step in plan.layers]
    functions = [_functions(conv.weight_nn, embedding) for conv in convs]
    to_zero = len(functions[0]) == 1  # an XPLOR cutoff has a second derivative at its end

    def forget() -> None:
        embedding.spline = None
        for conv in convs:
            conv.layer.spline = None

    def fit(intervals: int) -> None:
        for conv, pieces in zip(convs, functions, strict=True):
            found = [RadialSpline.fit(piece, intervals, to_zero) for piece in pieces]
            like = conv.weight_nn.layer0.weight
            conv.layer.spline = RadialSpline(torch.stack(found).to(like))
        embedding.pieces = len(functions[0])
        embedding.spline = convs[0].layer.spline

    host, parts = models.host_model(network), [conv.layer for conv in convs]
    put_tables(network, host, parts, functions, fit, forget, tol, structures)


def _functions(weight_nn: Any, embedding: Any) -> list[Function]:
    """The radial network in float64 on each piece of the range, a function of the place ``[n]`` in
    it, from 0 to 1."""
    network = copy.deepcopy(weight_nn).double().cpu()
    basis, cutoff = embedding.basis_function, embedding.cutoff_function
    coeffs = torch.as_tensor(basis.coeffs).detach().double().cpu()

    def weights(envelope: Function, start: float, end: float, x: Tensor) -> Tensor:
        r = (start + (end - start) * x).unsqueeze(1)
        embedded = basis.prefactor * coeffs * torch.sinc(coeffs * r / math.pi)
        return network(embedded * envelope(r))

    if inner.kind(cutoff) == "PolynomialCutoff":
        return [partial(weights, cutoff, 0.0, cutoff.cutoff_length)]
    return [
        partial(weights, torch.ones_like, 0.0, cutoff.r_on),
        partial(weights, partial(_xplor, cutoff.r_on, cutoff.r_cut), cutoff.r_on, cutoff.r_cut),
    ]


def _xplor(r_on: float, r_cut: float, r: Tensor) -> Tensor:
    """The cutoff beyond ``r_on``, where the host's formula is a polynomial."""
    on, end, square = r_on**2, r_cut**2, r**2
    return (end - square) ** 2 * (end + 2 * square - 3 * on) / (end - on) ** 3
