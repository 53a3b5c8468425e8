"""Modules of a class derived from the host's own, which a packaged model brings itself: so all that
NequIP finds by class keeps working."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch

from fastmlip import backend


class Derived:
    """Base of a mixin with what a derived class has in place of the host's; it pickles. What a
    mixin adds to a module has an annotation in its class."""

    def __reduce__(self: Any):
        mixin, host = type(self).__mro__[1], type(self).__bases__[1]
        return empty, (mixin, host), self.__dict__

    def __prepare_scriptable__(self: Any) -> torch.nn.Module:
        """TorchScript takes the host's own forward, with the same modules inside."""
        mixin, host = type(self).__mro__[1], type(self).__bases__[1]
        warnings.warn(
            f"TorchScript takes {host.__name__}'s own forward: what is scripted is not accelerated",
            stacklevel=2,
        )
        stock: Any = host.__new__(host)  # type: ignore[call-overload]
        stock.__dict__.update(self.__dict__)
        for held in ("_modules", "_buffers", "_parameters"):
            stock.__dict__[held] = type(vars(self)[held])(vars(self)[held])
        for cls in mixin.__mro__[: mixin.__mro__.index(Derived)]:
            for name in cls.__annotations__:
                for held in (stock.__dict__, stock._modules, stock._buffers):
                    held.pop(name, None)
        return stock


def is_cpp(t: torch.Tensor) -> bool:
    """Whether the C++ operators run on ``t``, in its own dtype."""
    return backend.choose(t) == "cpp" and not torch.is_autocast_enabled(t.device.type)


def has_kernels(t: torch.Tensor) -> bool:
    """Whether the C++ or the Triton operators run on ``t``, in its own dtype."""
    is_kernel = backend.choose(t) in ("cpp", "triton")
    return is_kernel and not torch.is_autocast_enabled(t.device.type)


@cache
def derived_class(mixin: Any, host: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The class of ``mixin`` for modules of the class ``host``."""
    return type(mixin.__name__, (mixin, host), {"__module__": mixin.__module__})


def empty(mixin: Any, host: Any) -> Any:
    """A module of that class without parameters, buffers or attributes."""
    new = derived_class(mixin, host).__new__(derived_class(mixin, host))
    torch.nn.Module.__init__(new)
    return new


def derive_in_place(mixin: Any, module: torch.nn.Module) -> None:
    """Make ``module`` itself one of that class."""
    host: Any = type(module)
    module.__class__ = derived_class(mixin, host)


def derive(mixin: Any, old: torch.nn.Module) -> Any:
    """A module of that class with all that ``old`` has, the same modules inside."""
    new = empty(mixin, type(old))
    new.__dict__.update(old.__dict__)
    return new
