"""A call of a whole model as the list of what it launches on a GPU, without one.

The model runs on fake CPU tensors, that is on shapes alone, with autograd; its operators take the
branch that they take on a GPU (:func:`fastmlip.backend.as_on_gpu`), and the launches of Triton
kernels are noted. So the list follows the code: a new kernel is in it as soon as an operator
launches it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastmlip import backend, torch_private
from fastmlip.gpu import operators
from fastmlip.gpu.operators import Work, nbytes, place, tensors

Tensor = torch.Tensor


@dataclass(frozen=True)
class Launch:
    """One call of a torch operator, or one launch of a Triton kernel, in the order of the model.

    ``call`` is the launch as :mod:`fastmlip.kernels._run` notes it, None for torch's operators;
    ``operator`` is the operator of fastmlip that it belongs to, empty for those of the model.
    """

    name: str
    operator: str
    work: Work
    call: Any = None


@dataclass(frozen=True)
class Trace:
    """Everything that a call launches, and what the host does besides."""

    launches: tuple[Launch, ...]
    custom_calls: int  # of operators of fastmlip
    views: int  # of operators that launch nothing

    @property
    def total(self) -> int:
        return sum(one.work.launches for one in self.launches)


def trace(function: Callable[[dict[str, Tensor]], Any], data: Mapping[str, Any]) -> Trace:
    """What ``function`` of fake copies of ``data`` launches; parameters may be real.

    Raises:
        ValueError: it asks for numbers, of which shapes have none.
    """
    fake, notes = torch_private.shapes_alone(), _Notes()
    tensors_of = {k: v for k, v in data.items() if isinstance(v, Tensor)}
    copies: dict[str, Tensor] = {k: fake.from_tensor(v) for k, v in tensors_of.items()}
    try:
        with backend.as_on_gpu(), fake, notes.watch:
            function(copies)
    except RuntimeError as error:
        if not torch_private.asks_for_numbers(error):
            raise
        raise ValueError(
            f"expected a model whose launches follow from shapes, got one that asks for numbers: "
            f"{error}"
        ) from None
    launches = [replace(one, call=_without_memory(one.call)) for one in notes.launches]
    return Trace(tuple(launches), notes.custom_calls, notes.views)


def _without_memory(call: Any) -> Any:
    """The launch with meta tensors as operands, of which Triton asks the address."""

    def meta(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")

    return call and call._replace(operands=tuple(map(meta, call.operands)))


class _Notes:
    def __init__(self) -> None:
        self.watch = torch_private.watching(self._see)
        self.launches: list[Launch] = []
        self.custom_calls = self.views = 0
        self._inside = ""

    def _see(self, function: Any, args: Any, kwargs: Any) -> Any:
        name = function.name().partition(".")[0]
        if name in backend.TRITON_OPERATORS:
            self.custom_calls += 1
            return self._fused(name, args, kwargs)
        result = function(*args, **kwargs)
        if function.namespace == "prim":
            return result
        if function.namespace == "fastmlip":
            raise RuntimeError(f"{name} ran while a GPU's launches were noted: it is the CPU's")
        work = operators.work(function, args, kwargs, result)
        if work.launches:
            self.launches.append(Launch(name, self._inside, work))
        else:
            self.views += 1
        return result

    def _fused(self, name: str, args: Any, kwargs: Any) -> Any:
        """The operator's launches, with each tensor's bytes counted once, and those that go from
        one kernel to another twice."""
        from fastmlip.kernels._run import recorded

        outer, self._inside = self._inside, name
        with recorded() as calls, self.watch:
            result = backend.TRITON_OPERATORS[name](*args, **kwargs)
        self._inside = outer
        known = {place(t) for t in (*tensors((args, kwargs)), *tensors(result))}
        users: Counter[Any] = Counter()  # launches that take a tensor
        kernels: dict[Any, set[Any]] = {}
        for call in calls:
            for t in tensors(call.operands):
                users[place(t)] += 1
                kernels.setdefault(place(t), set()).add(call.kernel)
        for call in calls:
            size = 0.0
            for t in tensors(call.operands):
                times = 2 if place(t) not in known and len(kernels[place(t)]) > 1 else 1
                size += times * nbytes(t) / users[place(t)]
            double = any(t.dtype == torch.float64 for t in tensors(call.operands))
            work = Work(int(math.prod(call.grid) > 0), size, 0.0, 0, double)
            short = call.kernel.__name__.strip("_").removesuffix("_kernel")
            self.launches.append(Launch(short, name, work, call))
        return result
