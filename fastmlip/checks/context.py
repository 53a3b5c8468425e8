"""What the checks of a run share: frames, the sizes errors are measured against, random numbers.

Energies are compared as differences to those of lone atoms: shifts of thousands of eV would hide
everything. An error is measured against the largest number of its kind in a frame; where a frame
has only zeros (one lone atom), against the largest of all frames.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastmlip.checks.model import Outputs, Side, Weights
from fastmlip.integrations import structures as moves
from fastmlip.integrations.structures import POS, TYPES, Data, Frame, draw
from fastmlip.testing import relative_error

Tensor = torch.Tensor


class Scale(NamedTuple):
    """Sizes that errors of a frame are measured against."""

    energy: float
    forces: float
    stress: float


class Context:
    """Frames, their scales and the random numbers of a run; ``fused`` is what is checked."""

    def __init__(self, fused: Side, stock: Side | None, frames: list[Frame], seed: int) -> None:
        self.fused, self.stock, self.frames, self.seed = fused, stock, frames, seed
        self.host = fused.host
        dtypes = [side.host.dtype for side in (fused, stock) if side]
        self.dtype = torch.float32 if torch.float32 in dtypes else torch.float64
        self.device = fused.device
        self._kept: dict[Any, Any] = {}
        base = stock or fused
        self.has_forces = base.known(frames[0].data).forces is not None
        lone = base(self.to(moves.lone_atoms(base.host))).atomic.double()
        self.lone = lone
        raw = {frame.name: self._scale(base, frame) for frame in frames}
        largest = Scale(*(max(values) for values in zip(*raw.values(), strict=True)))
        self.scales = {
            name: Scale(
                *(
                    own if own > 1e-3 * most else most
                    for own, most in zip(scale, largest, strict=True)
                )
            )
            for name, scale in raw.items()
        }
        # of tables, relative to forces as errors are: their tolerance is in eV/Angstrom
        tolerance = max(side.host.table_tolerance for side in (fused, stock) if side)
        smallest = min((scale.forces for scale in self.scales.values()), default=0.0)
        self.table_error = tolerance / smallest if tolerance and smallest else 0.0

    def to(self, data: Data) -> Data:
        return {key: value.to(self.device) for key, value in data.items()}

    def random(self, frame: Frame) -> torch.Generator:
        """The same numbers for both sides and whatever else was run."""
        return torch.Generator().manual_seed(self.seed + sum(map(ord, frame.name)))

    def relative(self, atomic: Tensor, data: Data) -> Tensor:
        """Atomic energies without those of lone atoms."""
        return atomic.double() - self.lone[data[TYPES].flatten()]

    def _scale(self, side: Side, frame: Frame) -> Scale:
        energy = forces = stress = 0.0
        for data in frame.versions:
            out = side.known(data)
            energy = max(energy, self.relative(out.atomic, data).abs().max().item())
            if out.forces is not None:
                forces = max(forces, out.forces.abs().max().item())
            if out.stress is not None:
                # the stress of a crystal at rest is a small sum of large terms of this size
                terms = forces * self.host.r_max * len(data[POS]) ** 0.5 / 2
                stress = max(stress, out.stress.abs().max().item(), terms / moves.volume(data))
        return Scale(energy, forces, stress)

    def errors(self, actual: Outputs, expected: Outputs, frame: Frame) -> dict[str, float]:
        """Relative errors of energies, forces and stress, of those there are."""
        scale, atoms = self.scales[frame.name], max(1, len(expected.atomic))
        total = relative_error(actual.total, expected.total, scale.energy * atoms)
        atomic = relative_error(actual.atomic, expected.atomic, scale.energy)
        found = {"energies": max(atomic, total)}
        for name in ("forces", "stress"):
            a, b = getattr(actual, name), getattr(expected, name)
            if a is not None and b is not None:
                found[name] = relative_error(a, b, getattr(scale, name))
        return found

    def worst(self, actual: Outputs, expected: Outputs, frame: Frame) -> float:
        return max(self.errors(actual, expected, frame).values())

    def weights(self, frame: Frame) -> Weights:
        """Random coefficients of a loss in which energies, forces and stress count alike."""
        random, scale = self.random(frame), self.scales[frame.name]
        atoms = len(frame.data[POS])
        factors = [1 / size if size else 0.0 for size in scale]
        shapes = ((atoms,), (atoms, 3), (3, 3))
        drawn = [draw(shape, random) * f for shape, f in zip(shapes, factors, strict=True)]
        return Weights(*(value.to(self.device) for value in drawn))

    def directions(self, frame: Frame) -> Tensor:
        """Random displacements ``[3, N, 3]`` of all atoms at once."""
        return draw((3, *frame.data[POS].shape), self.random(frame)).to(self.device)

    def gradients(self, side: Side, frame: Frame) -> dict[str, Tensor]:
        """Parameter gradients of the loss of :meth:`weights`."""
        key = "gradients", side, frame.name
        if key not in self._kept:
            self._kept[key] = side.gradients(frame.data, self.weights(frame))
        return self._kept[key]

    def hessian(self, side: Side, frame: Frame) -> Tensor:
        """The Hessian times :meth:`directions`."""
        key = "hessian", side, frame.name
        if key not in self._kept:
            self._kept[key] = side.hessian_products(frame.data, self.directions(frame))
        return self._kept[key]
