"""The one place where a kernel is launched, or noted instead.

What holds for every launch, and where:

- **device**: of the first operand, whatever the current one is (:func:`_on`);
- **stream**: torch's current one on that device, which Triton asks for at each launch;
- **no host synchronisation**: a launcher reads shapes, never values; what is summed after a kernel
  is summed by torch on the same stream. So a CUDA graph can capture it, once a first call has
  compiled the kernels;
- **grid**: nodes, edges or atoms go along x, whose limit is 2^31 - 1 programs; y is blocks of
  channels, a property of the irreps; there is no z;
- **variants**: one of a kernel serves every size. Sizes and index tables are not specialised on
  (:func:`kernel`), and tables of floats begin at multiples of 16 bytes (:func:`_aligned`);
- **offsets**: a kernel widens its program's number to int64 before it multiplies it, and indices of
  nodes and edges are int64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton

WARP = 64 if torch.version.hip else 32  # lanes of a warp


def kernel(*sizes: str) -> Callable[[Callable[..., Any]], Any]:
    """``triton.jit`` of a kernel that has one variant for all sizes.

    Of arguments that are not named here, Triton compiles variants: for a size that is 1 or a
    multiple of 16, and for a tensor whose address is a multiple of 16, as parts of one index table
    have it or not with the numbers of nodes and edges.

    Args:
        sizes: names of the arguments that are sizes or index tables.
    """
    return triton.jit(do_not_specialize=sizes)


class Call(NamedTuple):
    """One launch: what Triton needs to compile the kernel, and its grid."""

    kernel: Any
    grid: tuple
    operands: tuple
    constants: dict
    lanes: int


_calls: list[Call] | None = None


@contextlib.contextmanager
def recorded() -> Iterator[list[Call]]:
    """Note launches instead of making them: on meta or fake tensors, without a GPU."""
    global _calls
    before, _calls = _calls, []
    try:
        yield _calls
    finally:
        _calls = before


def run(kernel, grid: tuple, *operands, lanes: int, **constants) -> None:
    """Launch on a GPU (traceable: export and compile see the kernel), or under the interpreter.

    ``grid`` counts programs along x and y, ``lanes`` the threads of a program.
    """
    operands = tuple(map(_aligned, operands))
    if _calls is not None:
        _calls.append(Call(kernel, grid, operands, constants, lanes))
        return
    if isinstance(kernel, triton.runtime.JITFunction):
        kernel = torch.library.wrap_triton(kernel)
    with _on(next(t for t in operands if t is not None).device):
        kernel[grid](*operands, **constants, num_warps=max(lanes // WARP, 1), num_stages=1)


def _aligned(operand: Any) -> Any:
    """A copy of floats that begin between multiples of 16 bytes, as part of another tensor may.

    What a launch writes is new memory, which never does. Tensors of a trace have no address; the
    compiler of a graph sees to its own.
    """
    is_table = type(operand) in (torch.Tensor, torch.nn.Parameter) and operand.is_floating_point()
    return operand.clone() if is_table and operand.data_ptr() % 16 else operand


def _on(device: torch.device):
    """Make ``device`` the current one: Triton launches there. A graph's compiler does it itself,
    and on a CPU (the interpreter, or a trace without a GPU) there is nothing to do."""
    if device.type == "cuda" and torch.cuda.is_initialized():
        return torch.cuda.device(device)
    return contextlib.nullcontext()
