"""One side of a comparison: a model, the backend it runs on, and what can be asked of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from fastmlip import backend, torch_private
from fastmlip.integrations.structures import POS, Data, volume

Tensor = torch.Tensor
ENERGY, ATOMIC, FORCES, STRESS = "total_energy", "atomic_energy", "forces", "stress"


class Outputs(NamedTuple):
    """Atomic energies ``[N]``, total energy ``[]``, forces ``[N, 3]``, stress ``[3, 3]``; the last
    two are None where the model, or for the stress the structure, has none."""

    atomic: Tensor
    total: Tensor
    forces: Tensor | None
    stress: Tensor | None


class Weights(NamedTuple):
    """Coefficients of a loss that is linear in atomic energies, forces and stress."""

    atomic: Tensor
    forces: Tensor
    stress: Tensor


class Side:
    """A model of the comparison.

    Args:
        host: the model.
        reference: run fastmlip's operators in it, if it has any, as plain PyTorch.
        device: of the model and its inputs.
    """

    def __init__(self, host: Any, reference: bool, device: torch.device) -> None:
        self.host = host
        self.model = host.model
        self.reference = reference
        self.device = device
        self._known: dict[int, tuple[Data, Outputs]] = {}

    @property
    def trainable(self) -> dict[str, Tensor]:
        """Its parameters that a training would change."""
        if self.host.compiled:
            return {}
        named = self.model.named_parameters()
        return {name: p for name, p in named if p.requires_grad and p.numel()}

    def raw(self, data: Data) -> dict[str, Tensor]:
        """What the model itself returns."""
        with backend.use_backend("reference") if self.reference else contextlib.nullcontext():
            return self.host.run(dict(data))

    def __call__(self, data: Data) -> Outputs:
        """Energies, forces and stress of one frame."""
        bare = {key: value.detach().clone() for key, value in data.items()}
        return _outputs(self.raw(bare), data)

    def known(self, data: Data) -> Outputs:
        """The same, from the first evaluation of this very frame."""
        if id(data) not in self._known:
            self._known[id(data)] = data, self(data)
        return self._known[id(data)][1]

    def loss(self, data: Data, weights: Weights) -> Tensor:
        """The linear loss."""
        return _loss(self(data), weights)

    def gradients(self, data: Data, weights: Weights) -> dict[str, Tensor]:
        """The gradients of the linear loss in all trainable parameters."""
        parameters = self.trainable
        with self._training():
            out = _outputs(self.raw(data), data, detach=False)
            loss = _loss(out, weights)
            grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return {
            name: torch.zeros_like(p) if grad is None else grad.detach()
            for (name, p), grad in zip(parameters.items(), grads, strict=True)
        }

    def hessian_products(self, data: Data, directions: Tensor) -> Tensor:
        """Second derivatives of the energy times each of ``directions [K, N, 3]``."""
        with self._training():
            pos = data[POS].detach().clone().requires_grad_()
            forces = self.raw({**data, POS: pos})[FORCES]
            products = [
                -torch.autograd.grad(
                    (forces * direction).sum(), pos, retain_graph=True, materialize_grads=True
                )[0]
                for direction in directions
            ]
        return torch.stack(products).detach()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Without parameters to train, as in a compiled model."""
        parameters = list(self.trainable.values())
        for parameter in parameters:
            parameter.requires_grad_(False)
        self._known, before = {}, self._known
        try:
            yield
        finally:
            self._known = before
            for parameter in parameters:
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        """Keeps the graph of the forces."""
        before = self.model.training
        self.model.train()
        try:
            yield
        finally:
            self.model.train(before)


def _outputs(out: dict[str, Tensor], data: Data, detach: bool = True) -> Outputs:
    atomic = out[ATOMIC].flatten()
    total = out[ENERGY].sum() if ENERGY in out else atomic.sum()
    size = volume(data)
    stress = None
    if size and STRESS in out:
        stress = out[STRESS].view(3, 3)
    elif size and "virial" in out:
        stress = -out["virial"].view(3, 3) / size
    found: Any = atomic, total, out.get(FORCES), stress
    return Outputs(*(t.detach() if detach and t is not None else t for t in found))


def _loss(out: Outputs, weights: Weights) -> Tensor:
    loss = (out.atomic.double() * weights.atomic).sum()
    for value, factor in ((out.forces, weights.forces), (out.stress, weights.stress)):
        if value is not None:
            loss = loss + (value.double() * factor).sum()
    return loss


def per_frame(out: dict[str, Tensor], frames: list[Data]) -> list[Outputs]:
    """The outputs of a batch, taken apart."""
    found, start = [], 0
    for number, data in enumerate(frames):
        rows = slice(start, start + len(data[POS]))
        start = rows.stop
        one = {name: out[name][rows] for name in (ATOMIC, FORCES) if name in out}
        one |= {name: out[name][number] for name in (ENERGY, STRESS) if name in out}
        found.append(_outputs(one, data))
    return found


def to(data: Data, device: torch.device) -> Data:
    return {key: value.to(device) for key, value in data.items()}


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Torch's own operators repeat their bits, and memory handed out uninitialised is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def operators_run(side: Side, data: Data, training: bool) -> dict[str, int]:
    """Names of the fastmlip operators that an evaluation calls, and how often."""

    def evaluate() -> None:
        side(data)
        with side.frozen():
            side(data)
        if training:
            side.hessian_products(data, torch.ones_like(data[POS])[None])

    return torch_private.count_operators("fastmlip", evaluate)
