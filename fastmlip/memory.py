"""Memory that the C++ kernels keep for their next calls."""

from __future__ import annotations

import torch

from fastmlip import backend


def release_memory() -> int:
    """Return to the system the memory that the C++ kernels keep for their next calls.

    Kernels keep their scratch memory, because to ask the system for it at every call costs more
    than the work on it: 256 MiB for each process at most, or what the environment variable
    ``FASTMLIP_MEMORY`` says when the first kernel runs (``64`` and ``64MiB`` are the same, ``KiB``
    and ``GiB`` are units too, ``0`` keeps nothing). Beyond that, what was longest unused goes
    back by itself. Tensors are not counted: they are torch's.

    Memory of all threads is returned, but for what running kernels use at the moment. Free memory
    of the C library goes with it, where it can (glibc).

    Returns:
        The number of bytes that were kept; 0 without the C++ extension.
    """
    return 0 if backend.load_extension() else torch.ops.fastmlip.release_memory()
