"""Scale and shift of per-atom energies by type, in float64.

With the type t_i of atom i, scales alpha and shifts E0::

    out[i] = alpha[t_i] * x[i] + E0[t_i]

in one pass, the cast to float64 included. One value for all types (``[1, 1]``) reads no types, and
where it is constant and a graph is made is one ``torch.addcmul``. Eager calls with constants by
type leave derivatives to torch's own product. Where ``x[i]`` is zero, as for an atom without
neighbours, ``out[i]`` is ``E0[t_i]`` to the bit.

Two operators are each other's derivatives to every order, because ``out`` is linear in x and in
(alpha, E0), and the second is the transpose of the first in (alpha, E0)::

    scale_shift(x; alpha, E0)[i] = alpha[t_i] x[i] + E0[t_i]
        d/dx                     = scale_shift(grad; alpha, none)
        d/d(alpha, E0)           = scale_shift_sums(grad, x)
    scale_shift_sums(g, x)[t]    = (sum of g[i] x[i], sum of g[i]) over atoms i of type t
        d/dg                     = scale_shift(x; h_alpha, h_E0)
        d/dx                     = scale_shift(g; h_alpha, none)

The sums run over fixed blocks of atoms in a fixed order: the same bits in every run and for any
number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastmlip import backend
from fastmlip.backend import FLOATS
from fastmlip.ops.ladder import Rung, eager, has_memory, ladder

Tensor = torch.Tensor
INTEGERS = (torch.int32, torch.int64)


def scale_shift(
    x: Tensor, types: Tensor, scales: Tensor | None = None, shifts: Tensor | None = None
) -> Tensor:
    """``scales[types] * x + shifts[types]`` in float64, in the shape of ``x``.

    Args:
        x: energies ``[N]`` or ``[N, 1]``, float32 or float64 (other floats: cast to float32 first).
        types: at least N types, int32 or int64, in ``[0, num_types)``; more, as for ghost atoms,
            are not read. ``[N]`` or ``[N, 1]``.
        scales: ``[num_types, 1]``, or ``[1, 1]`` for all types, float64; None is 1.
        shifts: likewise, in the units of ``x`` times those of ``scales``; None is 0.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
        RuntimeError: a type out of range, with its position, or fewer types than atoms. On a GPU
            the energy of an atom with such a type is NaN.
    """
    which = backend.choose(x)
    one = _one_constant(scales) and _one_constant(shifts)
    if not one and which == "cpp" and _torch_differentiates(x, types, scales, shifts):
        try:
            return _CONSTANT(x, types, scales, shifts)  # checks what it takes
        except RuntimeError:
            _check(x, types, scales, shifts)  # has the better error for what it finds
            raise
    _check(x, types, scales, shifts)
    if x.dtype not in FLOATS:
        x = x.float()
    alone = which == "cpp" and not torch.is_grad_enabled() and eager()
    if one and not alone:  # else the kernel takes less time, from 100,000 atoms on half of it
        return _same_for_all_types(x, scales, shifts)
    if which == "reference":
        return reference(x, types, scales, shifts)
    calls = _CPP if which == "cpp" else _TRITON
    return calls["apply"](x, types, scales, shifts, False)


def _check(x: Tensor, types: Tensor, scales: Tensor | None, shifts: Tensor | None) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    if x.layout is not torch.strided:
        raise TypeError(f"x: expected a dense tensor, got {x.layout}")
    if x.dim() != 1 and not (x.dim() == 2 and x.shape[1] == 1):
        raise ValueError(f"x: expected shape [N] or [N, 1], got {tuple(x.shape)}")
    if types.dtype not in INTEGERS:
        raise TypeError(f"types: expected int32 or int64, got {types.dtype}")
    device = x.device
    if types.device != device:
        raise ValueError(f"types: expected device {device} as x has, got {types.device}")
    for name, values in (("scales", scales), ("shifts", shifts)):
        if values is None:
            continue
        if values.dtype is not torch.float64:
            raise TypeError(f"{name}: expected float64, got {values.dtype}")
        shape = values.shape
        if len(shape) != 2 or shape[1] != 1:
            raise ValueError(f"{name}: expected shape [num_types, 1] or [1, 1], got {tuple(shape)}")
        if shape[0] == 0:
            raise ValueError(f"{name}: expected at least one value, got none")
        if values.device != device:
            raise ValueError(f"{name}: expected device {device} as x has, got {values.device}")
    if scales is not None and shifts is not None:
        sizes = scales.shape[0], shifts.shape[0]
        if 1 not in sizes and sizes[0] != sizes[1]:
            raise ValueError(
                f"shifts: expected as many values as scales, {sizes[0]}, or one, got {sizes[1]}"
            )


def _one_constant(values: Tensor | None) -> bool:
    """One value for all types, without a gradient: torch's own sums, in which that would end, have
    other bits for another number of threads."""
    return values is None or (values.shape[:1] == (1,) and not values.requires_grad)


def _same_for_all_types(x: Tensor, scales: Tensor | None, shifts: Tensor | None) -> Tensor:
    """One multiply-add of torch's own, the cast in it: without Python, which up to 10,000 atoms is
    what a call costs."""
    if x.dim() == 1:
        scales, shifts = (None if v is None else v[0] for v in (scales, shifts))
    if scales is None:
        return x.double() if shifts is None else torch.add(x, shifts)
    return torch.mul(x, scales) if shifts is None else torch.addcmul(shifts, x, scales)


def _torch_differentiates(
    x: Tensor, types: Tensor, scales: Tensor | None, shifts: Tensor | None
) -> bool:
    """Whether the graph of a call with constants by type can be torch's own product: in eager calls
    on tensors with memory, where no mode or transform watches. Without a node made in Python, both
    passes of 100 atoms take about 40 us less, of 145."""
    return (
        x.requires_grad
        and torch.is_grad_enabled()
        and eager()
        and (scales is None or (not scales.requires_grad and has_memory(scales)))
        and (shifts is None or (not shifts.requires_grad and has_memory(shifts)))
        and has_memory(x)
        and has_memory(types)
    )


# ---------------------------------------------------------------- reference, in plain PyTorch


def reference(
    x: Tensor,
    types: Tensor,
    scales: Tensor | None = None,
    shifts: Tensor | None = None,
) -> Tensor:
    """The formula of this page; differentiable by torch's own autograd to any order."""
    out = x.double()
    if scales is not None:
        out = _gathered(scales, types, x) * out
    if shifts is not None:
        out = out + _gathered(shifts, types, x)
    return out


def _gathered(values: Tensor, types: Tensor, x: Tensor) -> Tensor:
    if values.shape[0] == 1:
        return values[0]
    types = types.reshape(-1)[: x.shape[0]]
    return values.flatten().index_select(0, types).reshape(x.shape)


# ---------------------------------------------------------------- the Triton operators


@backend.triton_op("fastmlip::scale_shift", mutates_args=())
def _apply(
    x: Tensor, types: Tensor, scales: Tensor | None, shifts: Tensor | None, single: bool
) -> Tensor:
    """``single`` gives float32, for gradients to float32 energies."""
    from fastmlip.kernels import scale_shift as kernels

    return kernels.apply(x, types, scales, shifts, single)


@backend.triton_op("fastmlip::scale_shift_sums", mutates_args=())
def _sums(grad: Tensor, x: Tensor, types: Tensor, num_types: int) -> tuple[Tensor, Tensor]:
    """Per type, the sums of ``grad * x`` and of ``grad``: each ``[num_types, 1]``, float64."""
    from fastmlip.kernels import scale_shift as kernels

    return kernels.sums(grad, x, types, num_types)


# ---------------------------------------------------------------- derivatives of both


def _save(ctx, inputs, output) -> None:
    x, types, scales, shifts, _ = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, types, scales)
    ctx.num_shifts = None if shifts is None else shifts.shape[0]
    ctx.single = x.dtype is torch.float32


def _vjp(rungs, ctx, grad):
    apply, sums = rungs["apply"], rungs["sums"]
    x, types, scales = ctx.saved_tensors
    to_x, _, to_scales, to_shifts, *_ = ctx.needs_input_grad
    dx = apply(grad, types, scales, None, ctx.single) if to_x else None
    dscales = dshifts = None
    if to_scales:
        dscales, dshifts = sums(grad, x, types, scales.shape[0])
    if not to_shifts:
        dshifts = None
    elif not to_scales or _is_one(scales.shape[0]) != _is_one(ctx.num_shifts):
        dshifts = sums(grad, grad, types, ctx.num_shifts)[1]
    return dx, None, dscales, dshifts, None


def _is_one(size) -> bool:
    """Of a number of values: a fixed fact also where sizes are symbols."""
    return True if size == 1 else False  # noqa: SIM210 (a bool, not a symbolic one)


def _save_sums(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3])


def _sums_vjp(rungs, ctx, hscales, hshifts):
    apply = rungs["apply"]
    grad, x, types = ctx.saved_tensors
    to_grad, to_x = ctx.needs_input_grad[:2]
    single = [t.dtype is torch.float32 for t in (grad, x)]
    dgrad = apply(x, types, hscales, hshifts, single[0]) if to_grad else None
    dx = apply(grad, types, hscales, None, single[1]) if to_x else None
    return dgrad, dx, None, None


def _ladder(suffix: str) -> dict[str, Callable[..., Any]]:
    names = ("scale_shift" + suffix, "scale_shift_sums" + suffix)
    apply, sums = (getattr(torch.ops.fastmlip, name).default for name in names)
    return ladder({"apply": Rung(apply, _save, _vjp), "sums": Rung(sums, _save_sums, _sums_vjp)})


_TRITON = _CPP = _ladder("")

if backend.load_extension() is None:
    _CPP = _ladder("_cpu")
    _CONSTANT = torch.ops.fastmlip.scale_shift_constant_cpu.default

    @torch.library.register_fake("fastmlip::scale_shift_cpu")
    def _(x, types, scales, shifts, single):
        return x.new_empty(x.shape, dtype=torch.float32 if single else torch.float64)

    @torch.library.register_fake("fastmlip::scale_shift_sums_cpu")
    def _(grad, x, types, num_types):
        shape, dtype = (num_types, 1), torch.float64
        return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)
