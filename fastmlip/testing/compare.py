"""The one comparator with its table of tolerances, and all derivatives of a function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

# Largest |actual - expected| over the largest |expected| of a tensor, by derivative order 0 .. 3:
# sums of K random terms round like sqrt(K) eps, K up to 1e4 here, in both computations. Over the
# table of cases the C++ kernels reach 1.3e-15 and 8e-7; a tenfold margin is left for other orders
# of summation. A lost path, a wrong sign or a float32 intermediate in float64 is 1e-8 to 1.
TOLERANCES = {
    torch.float64: (1e-14, 1e-14, 2e-14, 5e-14),
    torch.float32: (5e-6, 5e-6, 1e-5, 2e-5),
}


class Derivative(NamedTuple):
    """One tensor of :func:`derivatives`: ``out``; ``d_x``, ...; ``d2_g``, ...; ``d3_h_d_x``, ..."""

    name: str
    order: int
    value: torch.Tensor


def derivatives(
    function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], order: int = 3
) -> list[Derivative]:
    """``function(*inputs)`` and its gradients up to ``order``, each in all floating operands.

    Order 1 contracts the output with a fixed random ``g`` and differentiates; order 2 contracts
    those gradients with fixed random ``h`` and differentiates again, ``g`` included; order 3
    likewise, ``h`` included. The random tensors are the same for every dtype and every function.
    """
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs]
    names = getattr(inputs, "_fields", [str(i) for i in range(len(leaves))])
    operands = {n: t for n, t in zip(names, leaves, strict=True) if t.is_floating_point()}
    values = {"out": function(*leaves)}
    found = [Derivative("out", 0, values["out"].detach())]
    random = torch.Generator().manual_seed(1234)
    for level in range(1, order + 1):
        contraction = {}
        for name, value in values.items():
            draw = torch.randn(value.shape, generator=random).to(value)
            contraction["g" if level == 1 else f"h_{name}"] = draw.requires_grad_()
        prefix = "d" if level == 1 else f"d{level}"
        pairs = zip(values.values(), contraction.values(), strict=True)
        connected = [(value, draw) for value, draw in pairs if value.requires_grad]
        grads = torch.autograd.grad(
            [value for value, _ in connected],
            list(operands.values()),
            [draw for _, draw in connected],
            create_graph=level < order,
            materialize_grads=True,
        )
        values = {f"{prefix}_{name}": g for name, g in zip(operands, grads, strict=True)}
        found += [Derivative(name, level, value.detach()) for name, value in values.items()]
        operands = {**contraction, **operands}
    return found


def nonlinear_chain(
    function: Callable[..., torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    order: int = 3,
    sizes: dict[str, float] | None = None,
) -> list[Derivative]:
    """Gradients as in training: of an energy that is a nonlinear function of ``function``, of a
    nonlinear function of those gradients (a loss of forces), and so on up to ``order``.

    In :func:`derivatives` what a derivative is contracted with is a random constant. Here it
    depends on the operands, as the operands of a rung's own derivatives then do on one another.

    ``sizes`` keeps the numbers by which values are divided, so that all are of the size one, for
    another call with the same energies.
    """
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs]
    names = getattr(inputs, "_fields", [str(i) for i in range(len(leaves))])
    operands = {n: t for n, t in zip(names, leaves, strict=True) if t.is_floating_point()}
    sizes = {} if sizes is None else sizes
    values, found = {"out": function(*leaves)}, []
    for level in range(1, order + 1):
        energy = torch.stack([t.sum() * 0.0 for t in operands.values()]).sum()
        for name, value in values.items():
            if value.numel():
                size = sizes.setdefault(name, value.detach().abs().max().item() or 1.0)
                energy = energy + torch.sin(value / size + 0.7).sum()
        grads = torch.autograd.grad(
            energy, list(operands.values()), create_graph=level < order, materialize_grads=True
        )
        values = {f"chain{level}_{name}": g for name, g in zip(operands, grads, strict=True)}
        found.append(Derivative(f"energy{level}", level, energy.detach()))
        found += [Derivative(name, level, value.detach()) for name, value in values.items()]
    return found


def relative_error(
    actual: torch.Tensor, expected: torch.Tensor, scale: float | None = None
) -> float:
    """Largest ``|actual - expected|`` over ``scale``, by default the largest ``|expected|``.

    Over 1 where the scale is zero; infinite where a shape differs or a number is not finite.
    """
    if actual.shape != expected.shape:
        return float("inf")
    if actual.numel() == 0:
        return 0.0
    wide, truth = actual.detach().cpu().double(), expected.detach().cpu().double()
    error = (wide - truth).abs().nan_to_num(nan=float("inf")).max().item()
    size = truth.abs().max().item() if scale is None else scale
    return error / size if size else error


def assert_close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    order: int = 0,
    name: str = "result",
    slack: float = 1.0,
) -> None:
    """``actual`` within its dtype's tolerance of ``expected``; NaN and infinity never pass.

    ``slack`` times the tolerance is for inputs drawn at random, where terms may cancel.

    Where ``expected`` is zero everywhere, ``actual`` must be exactly zero.
    """
    assert actual.shape == expected.shape, (
        f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    if actual.numel() == 0:
        return
    wide, truth = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert truth.isfinite().all(), f"{name}: the expected values are not finite"
    error = (wide - truth).abs().nan_to_num(nan=float("inf"))
    scale = truth.abs().max()
    tolerance = slack * TOLERANCES[actual.dtype][order]
    allowed = tolerance * scale
    worst = torch.unravel_index(error.argmax(), error.shape)
    where = tuple(int(i) for i in worst)
    assert error[worst] <= allowed, (
        f"{name}{list(where)} = {wide[worst]:.9g}, expected {truth[worst]:.9g}: off by "
        f"{error[worst] / scale if scale else error[worst]:.1e} of the largest entry, allowed "
        f"{tolerance:.0e} ({actual.dtype}, derivative order {order}); "
        f"{int((error > allowed).sum())} of {error.numel()} entries are off"
    )


def assert_same_derivatives(
    actual: Callable[..., torch.Tensor],
    expected: Callable[..., torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    order: int = 3,
    slack: float = 1.0,
) -> None:
    """``actual`` on ``inputs`` against ``expected`` on the same numbers in float64."""
    wide = type(inputs)(*(t.double() if t.is_floating_point() else t for t in inputs))
    truths = derivatives(expected, wide, order)
    for got, truth in zip(derivatives(actual, inputs, order), truths, strict=True):
        assert_close(got.value, truth.value, got.order, got.name, slack)


@contextlib.contextmanager
def poison_empty() -> Iterator[None]:
    """Fill memory that torch hands out uninitialised with NaN, also what C++ operators ask for.

    ``torch.utils.deterministic.fill_uninitialized_memory`` does it in ``torch.empty`` itself.
    """
    before = torch.are_deterministic_algorithms_enabled()
    switch: Any = torch.utils.deterministic
    filling = switch.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    switch.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        switch.fill_uninitialized_memory = filling
