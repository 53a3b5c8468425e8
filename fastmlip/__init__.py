"""Fused kernels for E(3)-equivariant interatomic potentials, on CPU (C++) and GPU (Triton)."""

import torch

# ruff: noqa: E402
# e3nn 0.4, which MACE pins, has one in its constants, and torch loads them only if it is allowed
torch.serialization.add_safe_globals([slice])

from fastmlip import data, nn, ops
from fastmlip.backend import BackendUnavailableError, info, use_backend, warn_if_slow
from fastmlip.checks import check
from fastmlip.integrations import accelerate, summary, tabulate
from fastmlip.memory import release_memory
from fastmlip.problem import TensorProductProblem

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailableError",
    "TensorProductProblem",
    "accelerate",
    "check",
    "data",
    "info",
    "nn",
    "ops",
    "release_memory",
    "summary",
    "tabulate",
    "use_backend",
]

warn_if_slow()
