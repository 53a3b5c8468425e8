"""Which implementation an operator runs: the C++ kernels, the Triton kernels, or the reference.

One rule for all operators: tensors on a CPU take ``cpp``, tensors on a GPU take ``triton``, and
where that is not installed the plain-PyTorch ``reference`` runs, which :func:`fastmlip.info` says.
Naming a backend (:func:`use_backend`, or the environment variable ``FASTMLIP_BACKEND``) turns the
rule off: what was named runs, or raises.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import importlib.metadata
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

BACKENDS = ("auto", "cpp", "triton", "reference")
_NOTED = "triton, noted"  # of `as_on_gpu`
NO_TRITON = "Triton is not installed"
FLOATS = (torch.float32, torch.float64)  # what kernels are there for


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run here."""


def extension() -> Path | None:
    """The C++ library; None where it is not built."""
    return next(iter(sorted(Path(__file__).parent.glob("_C*.so"))), None)


@cache
def load_extension() -> str | None:
    """Load the C++ library once; return why it is missing, or None where it is there."""
    library = extension()
    if library is None:
        return "the C++ extension is not built"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"the C++ extension does not load: {error}"
    return None


@cache
def load_triton() -> str | None:
    """Import Triton once; return why that failed, or None where it is there."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # whatever a broken installation raises; `info` and errors say it
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            return NO_TRITON
        return f"Triton does not load: {type(error).__name__}: {error}"
    return None


# read once: torch.compile traces `choose`
_no_cpp, _no_triton = load_extension(), load_triton()
# torch reads the source of a triton_op for its kernels, and prints a line for each where it cannot
# import Triton; there it would only raise when it is called, as the custom_op does
_triton_op = torch.library.custom_op if _no_triton else torch.library.triton_op
#: The functions behind the Triton operators, by the operator's name.
TRITON_OPERATORS: dict[str, Callable[..., Any]] = {}


def triton_op(name: str, mutates_args: Sequence[str]) -> Callable[[Callable[..., Any]], Any]:
    """``torch.library.triton_op``, of a function that is kept in ``TRITON_OPERATORS``."""

    def register(function: Callable[..., Any]) -> Any:
        TRITON_OPERATORS[name] = function
        return _triton_op(name, mutates_args=mutates_args)(function)

    return register


@cache
def triton_missing() -> str | None:
    """Why Triton kernels cannot be launched here, or None where they can."""
    if _no_triton:
        return _no_triton
    if interpreting():
        return None
    if not torch.cuda.is_available():
        return "no GPU is visible to torch"
    return None


def interpreting() -> bool:
    """Whether Triton kernels run under its interpreter, on CPU tensors (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {BACKENDS}, got {name!r}")
    if name == "cpp" and (why := load_extension()):
        raise BackendUnavailableError(f"{source}: backend 'cpp' was asked for, but {why}")
    if name == "triton" and (why := triton_missing()):
        raise BackendUnavailableError(f"{source}: backend 'triton' was asked for, but {why}")
    return name


_environment = _checked(os.environ.get("FASTMLIP_BACKEND", "auto"), "FASTMLIP_BACKEND")
_in_block = contextvars.ContextVar[str]("fastmlip.use_backend")


class _Asked:
    # a property made of the C function alone: torch.compile reads it, and compiles anew where it
    # has changed; a call of ContextVar.get it cannot trace. The argument of `get`, here the object
    # itself, is what it returns outside of all blocks.
    name = property(_in_block.get)


_ASKED = _Asked()


def asked() -> str:
    """The backend that was named, for this thread or task, or ``auto``."""
    return _environment if _ASKED.name is _ASKED else _ASKED.name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the operators of a ``with`` block on one backend: ``cpp``, ``triton`` or ``reference``.

    The block holds for the thread or the ``asyncio`` task that runs it, and for no other; one that
    starts inside takes the backend over if Python copies the context to it, as tasks do and threads
    do not (before Python 3.14). A graph that was exported inside the block keeps that backend.

    Raises:
        ValueError: unknown name.
        BackendUnavailableError: the backend cannot run here.
    """
    token = _in_block.set(_checked(name, "use_backend"))
    try:
        yield
    finally:
        _in_block.reset(token)


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Take the branch of a GPU for all tensors of a ``with`` block, on fake CPU tensors, on which
    launches are noted and nothing runs: autograd has no fake GPU."""
    token = _in_block.set(_NOTED)
    try:
        yield
    finally:
        _in_block.reset(token)


def choose(x: torch.Tensor) -> str:
    """The backend for operands like ``x``: never a silent change of one that was named."""
    name = asked()
    if name == _NOTED:
        return "triton"
    if name == "auto":
        if x.is_cpu:
            return "reference" if _no_cpp else "cpp"
        return "triton" if x.is_cuda and not _no_triton else "reference"
    if name == "cpp" and not x.is_cpu:
        raise BackendUnavailableError(f"backend 'cpp' runs on cpu tensors, got one on {x.device}")
    if name == "triton" and x.is_cpu and not interpreting():
        raise BackendUnavailableError(
            "backend 'triton' runs on GPU tensors (or on cpu ones with TRITON_INTERPRET=1), got cpu"
        )
    return name


def info() -> dict[str, str]:
    """What runs where, and why: one entry per question, ready to print."""
    no_cpp, no_triton = load_extension(), triton_missing()
    return {
        "fastmlip": importlib.metadata.version("fastmlip"),
        "torch": torch.__version__,
        "asked for": asked(),
        "cpu tensors": f"reference ({no_cpp})" if no_cpp else "cpp",
        "instruction set": "none" if no_cpp else torch.ops.fastmlip.isa(),
        "threads": str(torch.get_num_threads()),
        "gpu tensors": f"none run ({no_triton})" if no_triton else "triton",
        "triton": _no_triton or importlib.import_module("triton").__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def warn_if_slow() -> None:
    """Say once, at import, that the CPU, or a GPU with a broken Triton, runs the slow reference."""
    if _no_cpp:
        warnings.warn(
            f"fastmlip: {_no_cpp}; operators on the CPU run their plain-PyTorch reference",
            stacklevel=3,
        )
    if _no_triton and _no_triton != NO_TRITON and torch.cuda.is_available():
        warnings.warn(
            f"fastmlip: {_no_triton}; operators on a GPU run their plain-PyTorch reference",
            stacklevel=3,
        )
