"""What each check measures: relative errors of a model on frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from fastmlip.checks.context import Context
from fastmlip.checks.model import Outputs, Side, Weights, deterministic, per_frame
from fastmlip.integrations import structures as moves
from fastmlip.integrations.structures import POS, Data, Frame, draw
from fastmlip.testing import relative_error

Tensor = torch.Tensor
Errors = Iterator[tuple[str, float]]
REPEATS = 3
# Of central differences of fourth order: displacements in Angstrom, strains, shares of a parameter
STEPS = {torch.float64: (2e-4, 5e-5, 1e-4), torch.float32: (1e-2, 2.5e-3, 5e-3)}


def signal(context: Context, side: Side) -> Errors:
    """Without any, nothing would be shown."""
    energy = max(scale.energy for scale in context.scales.values())
    yield "all", 0.0 if energy > 0 else float("inf")


# ---------------------------------------------------------------- one model against the other


def parity(quantity: str) -> Callable[[Context, Side], Errors]:
    """Errors of energies, forces or stress against stock."""

    def measure(context: Context, side: Side) -> Errors:
        for frame in context.frames:
            if side is context.stock:
                errors = _turned(context, side, frame)
            else:
                assert context.stock is not None
                versions = [
                    context.errors(side.known(data), context.stock.known(data), frame)
                    for data in frame.versions
                ]
                errors = {name: max(v[name] for v in versions) for name in versions[0]}
            if quantity in errors:
                yield frame.name, errors[quantity]

    return measure


def one_sided(context: Context, side: Side) -> Errors:
    """Errors of energies, forces and stress against stock, on edges without their reverse."""
    for frame in context.frames:
        data = moves.thinned(frame.data, context.random(frame))
        stock = context.stock
        assert stock is not None
        if side is stock:
            rotation = moves.random_rotation(context.random(frame)).to(context.device)
            yield frame.name, context.worst(_turn_and_back(side, data, rotation), side(data), frame)
        else:
            yield frame.name, context.worst(side(data), stock(data), frame)


def frozen(context: Context, side: Side) -> Errors:
    """What ``parity`` and ``one_sided`` find where no parameter can be trained."""
    with side.frozen():
        for quantity in ("energies", "forces", "stress"):
            yield from parity(quantity)(context, side)
        yield from one_sided(context, side)


def gradients(context: Context, side: Side) -> Errors:
    """Errors of parameter gradients against stock."""
    for frame in context.frames:
        weights, stock = context.weights(frame), context.stock
        assert stock is not None
        expected = context.gradients(stock, frame)
        if side is stock:
            rotation = moves.random_rotation(context.random(frame)).to(context.device)
            weights = Weights(
                weights.atomic,
                weights.forces @ rotation.T,
                rotation @ weights.stress @ rotation.T,
            )
            actual = side.gradients(moves.turned(frame.data, rotation), weights)
        else:
            actual = context.gradients(side, frame)
        yield frame.name, _gradient_error(actual, expected)


def _gradient_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest of any parameter; one whose gradient nearly cancels counts by the others'."""
    if actual.keys() != expected.keys():
        return float("inf")
    sizes = {name: value.abs().max().item() for name, value in expected.items()}
    floor = 1e-4 * max(sizes.values(), default=0.0)
    return max(
        (relative_error(actual[n], expected[n], max(sizes[n], floor)) for n in expected),
        default=0.0,
    )


def hessian(context: Context, side: Side) -> Errors:
    """Errors of the Hessian times random displacements, against stock."""
    for frame in context.frames:
        directions, stock = context.directions(frame), context.stock
        assert stock is not None
        expected = context.hessian(stock, frame)
        if side is stock:
            rotation = moves.random_rotation(context.random(frame)).to(context.device)
            data = moves.turned(frame.data, rotation)
            actual = side.hessian_products(data, directions @ rotation.T) @ rotation
        else:
            actual = context.hessian(side, frame)
        yield frame.name, relative_error(actual, expected)


# ---------------------------------------------------------------- against finite differences


def _slope(function: Callable[[float], Tensor], step: float) -> Tensor:
    """The derivative at 0, up to terms of ``step**4``."""
    near, far = (function(k * step) - function(-k * step) for k in (1, 2))
    return (8 * near - far) / (12 * step)


def _energy(context: Context, side: Side, data: Data) -> Tensor:
    return context.relative(side(data).atomic, data).sum()


def forces_by_differences(context: Context, side: Side) -> Errors:
    """Minus the forces against central differences of the energy."""
    step = STEPS[context.dtype][0]
    for frame in context.frames:
        forces = side.known(frame.data).forces
        if forces is None:
            continue
        forces = forces.double()
        for direction in context.directions(frame)[:2]:

            def energy(h: float, frame: Frame = frame, direction: Tensor = direction) -> Tensor:
                data = moves.displaced(frame.data, h * direction, context.host)
                return _energy(context, side, data)

            typical = context.scales[frame.name].forces * direction.square().sum().sqrt().item()
            yield (
                frame.name,
                relative_error(_slope(energy, step), -(forces * direction).sum(), typical),
            )


def stress_by_differences(context: Context, side: Side) -> Errors:
    """The stress against central differences of the energy under strain."""
    step = STEPS[context.dtype][1]
    for frame in context.frames:
        stress = side.known(frame.data).stress
        if stress is None:
            continue
        strain = draw((3, 3), context.random(frame)).to(context.device)
        strain = (strain + strain.T) / 2
        size = moves.volume(frame.data)

        def energy(h: float, frame: Frame = frame, strain: Tensor = strain) -> Tensor:
            return _energy(context, side, moves.strained(frame.data, h * strain, context.host))

        typical = context.scales[frame.name].stress * size * strain.square().sum().sqrt().item()
        slope = size * (stress.double() * strain).sum()
        yield frame.name, relative_error(_slope(energy, step), slope, typical)


def gradients_by_differences(context: Context, side: Side) -> Errors:
    """Parameter gradients against central differences of the loss."""
    step = STEPS[context.dtype][2]
    for frame in context.frames:
        weights, parameters = context.weights(frame), side.trainable
        grads = context.gradients(side, frame)
        before = {name: p.detach().clone() for name, p in parameters.items()}
        random = context.random(frame)
        largest = max(p.square().mean().sqrt().item() for p in before.values())
        direction = {
            name: draw(p.shape, random).to(p) * (p.square().mean().sqrt().item() or largest)
            for name, p in before.items()
        }

        def loss(h: float, frame=frame, weights=weights, before=before, direction=direction):
            with torch.no_grad():
                for name, p in side.trainable.items():
                    p.copy_(before[name] + h * direction[name])
            return side.loss(frame.data, weights)

        try:
            slope = _slope(loss, step)
        finally:
            loss(0.0)
        terms = [grads[n].double() * direction[n].double() for n in grads]
        typical = sum(t.square().sum() for t in terms) ** 0.5
        yield (
            frame.name,
            relative_error(slope, torch.stack([t.sum() for t in terms]).sum(), float(typical)),
        )


def hessian_by_differences(context: Context, side: Side) -> Errors:
    """The Hessian times random displacements against central differences of the forces."""
    for frame in context.frames:
        directions = context.directions(frame)
        expected = _hessian_differences(context, side, frame, directions)
        yield frame.name, relative_error(context.hessian(side, frame), expected)


def _hessian_differences(context: Context, side: Side, frame: Frame, directions: Tensor) -> Tensor:
    def forces(direction: Tensor, h: float) -> Tensor:
        out = side(moves.displaced(frame.data, h * direction, context.host))
        assert out.forces is not None
        return out.forces.double()

    step = STEPS[context.dtype][0]
    return torch.stack([-_slope(partial(forces, direction), step) for direction in directions])


def hessian_symmetry(context: Context, side: Side) -> Errors:
    """``u H v`` against ``v H u``."""
    for frame in context.frames:
        yield frame.name, _asymmetry(context.hessian(side, frame), context.directions(frame))


def jacobian_symmetry(context: Context, side: Side) -> Errors:
    """The same from forces alone, for models that have no more."""
    for frame in context.frames:
        directions = context.directions(frame)
        products = _hessian_differences(context, side, frame, directions)
        yield frame.name, _asymmetry(products, directions)


def _asymmetry(products: Tensor, directions: Tensor) -> float:
    flat = products.flatten(1).double()
    matrix = flat @ directions.flatten(1).T
    typical = flat.square().sum(1).max().sqrt().item()
    return relative_error(matrix, matrix.T, typical)


# ---------------------------------------------------------------- what must not change a model


def _turned(context: Context, side: Side, frame: Frame) -> dict[str, float]:
    rotation = moves.random_rotation(context.random(frame)).to(context.device)
    back = _turn_and_back(side, frame.data, rotation)
    return context.errors(back, side.known(frame.data), frame)


def _turn_and_back(side: Side, data: Data, rotation: Tensor) -> Outputs:
    out = side(moves.turned(data, rotation))
    return out._replace(
        forces=None if out.forces is None else out.forces.double() @ rotation,
        stress=None if out.stress is None else rotation.T @ out.stress.double() @ rotation,
    )


def rotations(context: Context, side: Side) -> Errors:
    for frame in context.frames:
        yield frame.name, max(_turned(context, side, frame).values())


def inversion(context: Context, side: Side) -> Errors:
    for frame in context.frames:
        back = _turn_and_back(side, frame.data, -torch.eye(3).to(frame.data[POS]))
        yield frame.name, context.worst(back, side.known(frame.data), frame)


def translations(context: Context, side: Side) -> Errors:
    for frame in context.frames:
        data = moves.moved(frame.data, context.random(frame), context.host.r_max)
        yield frame.name, context.worst(side(data), side.known(frame.data), frame)


def atom_order(context: Context, side: Side) -> Errors:
    for frame in context.frames:
        atoms = len(frame.data[POS])
        order = torch.randperm(atoms, generator=context.random(frame)).to(context.device)
        out, back = side(moves.renumbered(frame.data, order)), torch.empty_like(order)
        back[order] = torch.arange(atoms, device=context.device)
        forces = None if out.forces is None else out.forces[back]
        out = out._replace(atomic=out.atomic[back], forces=forces)
        yield frame.name, context.worst(out, side.known(frame.data), frame)


def edge_order(context: Context, side: Side) -> Errors:
    for frame in context.frames:
        data = moves.shuffled(frame.data, context.random(frame))
        error = context.worst(side(data), side.known(frame.data), frame)
        if side.trainable:
            shuffled = side.gradients(data, context.weights(frame))
            error = max(error, _gradient_error(shuffled, context.gradients(side, frame)))
        yield frame.name, error


def batches(context: Context, side: Side) -> Errors:
    frames = [frame for frame in context.frames for _ in range(1 if len(context.frames) > 1 else 2)]
    data = [frame.data for frame in frames]
    out = per_frame(side.raw(context.to(context.host.batch([dict(d) for d in data]))), data)
    for frame, found in zip(frames, out, strict=True):
        yield frame.name, context.worst(found, side.known(frame.data), frame)


def repeats(context: Context, side: Side) -> Errors:
    """0 where all runs give the same bits, and the largest difference where they do not."""
    for frame in context.frames:
        with deterministic():
            runs = [side(frame.data) for _ in range(REPEATS)]
            error = max(context.worst(run, runs[0], frame) for run in runs)
            if side.trainable:
                weights = context.weights(frame)
                grads = [side.gradients(frame.data, weights) for _ in range(2)]
                error = max(error, _gradient_error(*grads))
        yield frame.name, error
