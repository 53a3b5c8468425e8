"""Features of ghost atoms, from the ranks of a parallel simulation that own them.

A rank has L atoms of its own and G ghosts, copies of atoms that it or another rank owns. With
``owner[g]`` the atom that ghost g is a copy of, wherever it is::

    forward: rows[i] = features[i]              for i < L
             rows[L + g] = features[owner[g]]
    reverse: home[i] = grad[i] + sum over all ghosts g of all ranks with owner[g] = i of grad[L + g]

Each is the transpose of the other, so the two operators close the ladder of derivatives. Who owns
what is known to the program that runs the simulation: it registers two functions with
``fastmlip_set_ghost_world``, a C function of the extension
(``csrc/operators/ghost_exchange.h``). All ranks call the operators in the same order, those without
atoms too.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from functools import cache

import torch

from fastmlip import backend
from fastmlip.ops.ladder import Rung, ladder

Tensor = torch.Tensor


def ghost_exchange(features: Tensor, num_ghost: int) -> Tensor:
    """``[L + G, C]``: ``features`` with the rows of ghost atoms behind them.

    Args:
        features: ``[L, C]``, float32 or float64, on a CPU.
        num_ghost: G.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: nobody is registered that exchanges rows, or the exchange failed.
        BackendUnavailableError: the C++ extension is not there, or ``features`` is on a GPU.
    """
    if features.dim() != 2:
        raise ValueError(f"features: expected shape [L, C], got {tuple(features.shape)}")
    if features.dtype not in backend.FLOATS:
        raise TypeError(f"features: expected float32 or float64, got {features.dtype}")
    if why := backend.load_extension():
        raise backend.BackendUnavailableError(f"ghost_exchange is a C++ operator, but {why}")
    if not features.is_cpu:
        raise backend.BackendUnavailableError(
            f"ghost_exchange runs on cpu tensors, got one on {features.device}"
        )
    return _LADDER["forward"](features, num_ghost)


# ---------------------------------------------------------------- a world of one process

_Rows = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *4 * [ctypes.c_int64])


@contextlib.contextmanager
def images(owner: Sequence[int]) -> Iterator[list[tuple[str, int]]]:
    """Inside the block, ghost g is an image of this process's own atom ``owner[g]``, as in a
    periodic structure on one rank.

    Yields:
        What was exchanged, ``(forward or reverse, C)`` for each call.
    """
    index, calls = torch.as_tensor(owner, dtype=torch.long), []

    def rows(pointer: int, count: int, columns: int, size: int) -> Tensor:
        if not count * columns:
            return torch.empty(count, columns)
        memory = (ctypes.c_char * (count * columns * size)).from_address(pointer)
        dtype = torch.float32 if size == 4 else torch.float64
        return torch.frombuffer(memory, dtype=dtype).view(count, columns)

    def forward(_, pointer, local, count, columns, size):
        x = rows(pointer, count, columns, size)
        x[local:] = x[index]
        calls.append(("forward", columns))
        return 0

    def reverse(_, pointer, local, count, columns, size):
        x = rows(pointer, count, columns, size)
        x[:local].index_add_(0, index, x[local:])
        calls.append(("reverse", columns))
        return 0

    functions = _Rows(forward), _Rows(reverse)
    _library().fastmlip_set_ghost_world(*functions, None)
    try:
        yield calls
    finally:
        _library().fastmlip_set_ghost_world(None, None, None)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(backend.extension()))
    library.fastmlip_set_ghost_world.restype = None
    return library


# ---------------------------------------------------------------- derivatives


def _save(ctx, inputs, output) -> None:
    ctx.num_ghost = inputs[1]


def _forward_vjp(rungs, ctx, g):
    return rungs["reverse"](g, ctx.num_ghost), None


def _reverse_vjp(rungs, ctx, h):
    return rungs["forward"](h, ctx.num_ghost), None


if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::ghost_exchange_cpu")
    def _(features, num_ghost):
        return features.new_empty((features.shape[0] + num_ghost, features.shape[1]))

    @torch.library.register_fake("fastmlip::ghost_exchange_reverse_cpu")
    def _(grad, num_ghost):
        return grad.new_empty((grad.shape[0] - num_ghost, grad.shape[1]))

    _OPS = torch.ops.fastmlip
    _LADDER = ladder(
        {
            "forward": Rung(_OPS.ghost_exchange_cpu.default, _save, _forward_vjp),
            "reverse": Rung(_OPS.ghost_exchange_reverse_cpu.default, _save, _reverse_vjp),
        }
    )
