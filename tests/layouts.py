"""The same numbers in other places of memory, and tensors that are views of another kind."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def _filler(t: Tensor) -> Tensor:
    """Of the shape of ``t``: what must never be read."""
    return torch.full_like(t, float("nan") if t.is_floating_point() else 2**31 - 1)


def padded(t: Tensor) -> Tensor:
    """Rows with a gap between them."""
    gap = _filler(t)
    return torch.cat([gap, t, gap], -1)[..., t.shape[-1] : 2 * t.shape[-1]]


def transposed(t: Tensor) -> Tensor:
    return t.T.contiguous().T if t.dim() == 2 else t.clone()


def every_other(t: Tensor) -> Tensor:
    return torch.stack([t, _filler(t)], -1).flatten(-2)[..., ::2]


def offset(t: Tensor) -> Tensor:
    """Contiguous, but not aligned to a vector."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t)


def negated_view(t: Tensor) -> Tensor:
    """Numbers whose sign torch keeps in a bit of the tensor."""
    if not t.is_floating_point():
        return t.clone()
    view = torch._neg_view(-t)
    assert view.is_neg()
    return view


LAYOUTS = (padded, transposed, every_other, offset, negated_view)
