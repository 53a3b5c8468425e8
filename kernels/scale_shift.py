"""GPU kernels of scale_shift; fastmlip/ops/scale_shift.py states the formula.

Sums by type take two steps without atomics: a program sums its own block of atoms, once for each
type, and the rows of all programs are then added up in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._run import kernel, run

Tensor = torch.Tensor
BLOCK, LANES = 512, 128  # atoms and threads of a program; with 1024, sm_120 spills


@triton.jit
def _at_type(values, t, known, mask, PER_TYPE: tl.constexpr):
    """``values[t]``; NaN for a type that there is not."""
    if PER_TYPE:
        value = tl.load(values + t, mask=mask & known, other=float("nan"))
    else:
        value = tl.load(values)
    return value


@kernel("types", "num_atoms", "num_types")
def _scale_shift_fwd_kernel(
    out,  # [N]
    x,  # [N]
    types,  # [N] or longer
    scales,  # [num_types], [1], or None
    shifts,
    num_atoms,
    num_types,
    PER_SCALE: tl.constexpr,
    PER_SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < num_atoms
    value = tl.load(x + i, mask=mask, other=0.0).to(tl.float64)
    t, known = i, mask
    if PER_SCALE or PER_SHIFT:
        t = tl.load(types + i, mask=mask, other=0)
        known = (t >= 0) & (t < num_types)
    if scales is not None:
        value = value * _at_type(scales, t, known, mask, PER_SCALE)
    if shifts is not None:
        value = value + _at_type(shifts, t, known, mask, PER_SHIFT)
    tl.store(out + i, value.to(out.dtype.element_ty), mask=mask)


@kernel("types", "num_atoms", "num_types")
def _scale_shift_sums_kernel(
    dscales,  # [programs, num_types]
    dshifts,
    grad,  # [N]
    x,  # [N]
    types,  # [N] or longer
    num_atoms,
    num_types,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = row * BLOCK + tl.arange(0, BLOCK)
    mask = i < num_atoms
    g = tl.load(grad + i, mask=mask, other=0.0).to(tl.float64)
    gx = g * tl.load(x + i, mask=mask, other=0.0).to(tl.float64)
    t = tl.load(types + i, mask=mask, other=-1)
    at = row * num_types
    for k in range(num_types):
        mine = t == k
        tl.store(dscales + at + k, tl.sum(tl.where(mine, gx, 0.0)))
        tl.store(dshifts + at + k, tl.sum(tl.where(mine, g, 0.0)))


def _types(types: Tensor, num_atoms: int) -> Tensor:
    numel = types.numel()
    if isinstance(numel, int) and isinstance(num_atoms, int) and numel < num_atoms:
        raise RuntimeError(f"types: expected at least N = {num_atoms} entries, got {numel}")
    return types.contiguous()


def apply(
    x: Tensor, types: Tensor, scales: Tensor | None, shifts: Tensor | None, single: bool
) -> Tensor:
    """``scales[types] * x + shifts[types]``, float32 where ``single``, else float64."""
    num_atoms = x.shape[0]
    x = x.contiguous()
    values = [v if v is None else v.contiguous() for v in (scales, shifts)]
    per_scale, per_shift = (v is not None and v.shape[0] != 1 for v in values)
    if per_scale and per_shift and scales.shape[0] != shifts.shape[0]:
        raise RuntimeError("shifts: expected as many values as scales")
    num_types = scales.shape[0] if per_scale else shifts.shape[0] if per_shift else 1
    if per_scale or per_shift:
        types = _types(types, num_atoms)
    out = x.new_empty(x.shape, dtype=torch.float32 if single else torch.float64)
    run(
        _scale_shift_fwd_kernel, (triton.cdiv(num_atoms, BLOCK),),
        out, x, types, *values, num_atoms, num_types,
        PER_SCALE=per_scale, PER_SHIFT=per_shift, BLOCK=BLOCK, lanes=LANES,
    )  # fmt: skip
    return out


def sums(grad: Tensor, x: Tensor, types: Tensor, num_types: int) -> tuple[Tensor, Tensor]:
    """Per type, the sums of ``grad * x`` and of ``grad``: each ``[num_types, 1]``, float64."""
    num_atoms = x.shape[0]
    grad, x = grad.contiguous(), x.contiguous()
    if num_types == 1:
        grad = grad.double()
        sums = (grad * x).sum(), grad.sum()
        return sums[0].view(1, 1), sums[1].view(1, 1)
    programs = triton.cdiv(num_atoms, BLOCK)
    dscales = x.new_empty((programs, num_types), dtype=torch.float64)
    dshifts = torch.empty_like(dscales)
    run(
        _scale_shift_sums_kernel, (programs,),
        dscales, dshifts, grad, x, _types(types, num_atoms), num_atoms, num_types, BLOCK=BLOCK,
        lanes=LANES,
    )  # fmt: skip
    return dscales.sum(0).view(num_types, 1), dshifts.sum(0).view(num_types, 1)
