"""What a host is: a package whose models fastmlip's modules are swapped into.

Each folder beside this file has one, its ``HOST``; :mod:`fastmlip.integrations.hosts` lists them.
``swap``, ``tabulate`` and :mod:`fastmlip.checks` walk that list and know none by name. What several
hosts share lies beside this file. Imports run one way: ``swap`` and ``tabulate``, the list, a
host's folder, what they share.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastmlip.integrations import structures
from fastmlip.integrations.derived import Derived
from fastmlip.integrations.forwards import Known, objection, package

Module = torch.nn.Module
Tensor = torch.Tensor
READY, SWAPPED, KEPT = "ready", "swapped", "kept"
TOLERANCE = 1e-5  # of a table: the largest error of a force component, eV/Angstrom


class Verdict(NamedTuple):
    """What becomes of a module: ``ready`` to swap, ``swapped``, or ``kept`` for a reason."""

    status: str
    reason: str


class Swap(NamedTuple):
    """What takes the place of a host class: a module of the class ``fast``, from
    ``make(old, model)``, or ``fast(old)`` where ``make`` is not given.

    ``judge(module, model)`` says why a module cannot be swapped, nothing where it can, and is None
    where another module's row says what becomes of it. ``has_rivals``: a class whose name ends with
    this one's is another accelerated kernel for it. ``parts(module)`` are the module and those in
    it, with their names, whose forward will not run any more. ``in_place``: the module stays, and
    ``make`` turns it into one of the class ``fast`` after those in it were swapped."""

    fast: type
    judge: Callable[[Module, Module], str | None]
    make: Callable[[Module, Module], Module] | None = None
    has_rivals: bool = True
    parts: Callable[[Module], Iterable[tuple[str, Module]]] = Module.named_modules
    in_place: bool = False


def all_but(*names: str) -> Callable[[Module], Iterable[tuple[str, Module]]]:
    """``parts`` of a fast module that calls its children of these names."""
    return lambda module: (
        (path, part) for path, part in module.named_modules() if path.split(".")[0] not in names
    )


def by_itself(unsupported: Callable[[Module], str]) -> Callable[[Module, Module], str | None]:
    """A ``judge`` that does not look at the model."""
    return lambda module, model: unsupported(module)


@dataclass(frozen=True, eq=False)
class Host:
    """A host package. Modules are known by the name of their class and the source of its forward,
    because models from packages bring copies of the classes.

    Attributes:
        name: for messages.
        package: the top-level package of its classes.
        swaps: the modules it knows, by the name of their class.
        known: the forwards they may have.
        fast: classes that count as swapped, those of ``swaps`` aside: a config can name them.
        after_swap: called with every model that something was swapped in.
        has_tables: whether ``tabulate`` has something to do in an accelerated model.
        tabulate: ``(model, tol, structures)``, in place, as :func:`fastmlip.tabulate` describes it.
        describe: a model in memory with what it takes to feed it; None where it is not this host's.
        load: ``(path, dtype, device)``, the stock model of a file; None for other kinds of files.
        takes: what ``describe`` and ``load`` take, for messages.
    """

    name: str
    package: str
    swaps: Mapping[str, Swap]
    known: Known
    fast: tuple[type, ...] = ()
    after_swap: Callable[[Module], None] = lambda model: None
    has_tables: Callable[[Module], bool] = lambda model: False
    tabulate: Callable[[Any, float | None, Iterable[Any] | None], None] | None = None
    describe: Callable[[Module], HostModel | None] = lambda model: None
    load: Callable[[Path, str | None, str], HostModel | None] = lambda path, dtype, device: None
    takes: str = ""

    def has(self, model: Module) -> bool:
        """Whether ``model`` has modules of this host's: modules of e3nn's, which hosts have in
        common, are left alone in the models of others."""
        classes = {cls for module in model.modules() for cls in type(module).__mro__}
        return any(package(cls) == self.package for cls in classes)

    def judge(self, module: Module, model: Module) -> Verdict | None:
        """What becomes of a module of ``model``; None where this host does not know it."""
        if isinstance(module, (*(swap.fast for swap in self.swaps.values()), *self.fast)):
            return Verdict(SWAPPED, getattr(module, "remark", ""))
        name = type(module).__name__
        known = next((known for known in self.swaps if name.endswith(known)), None)
        if known is None or name.startswith("_"):  # _ZBL is a part of ZBL
            return None
        if name != known:
            rival = Verdict(KEPT, f"{name} is another accelerated kernel already")
            return rival if self.swaps[known].has_rivals else None
        swap = self.swaps[known]
        reason = swap.judge(module, model)
        if reason is None:
            return None
        # a derived module has the hooks of the one that it is made of
        keeps_hooks = issubclass(swap.fast, Derived)
        reason = reason or objection(swap.parts(module), self.known, keeps_hooks)
        return Verdict(KEPT, reason) if reason else Verdict(READY, "")

    def swap_of(self, module: Module) -> Swap:
        """The row of a ``ready`` module."""
        return self.swaps[type(module).__name__]

    def replace(self, old: Module, model: Module) -> Module:
        """The new module for a ``ready`` one of ``model``, on its device and in its mode."""
        swap, inside = self.swap_of(old), set(old.modules())
        new = swap.make(old, model) if swap.make else swap.fast(old)
        for module in new.modules():
            if module not in inside:  # the others may be in another mode
                module.training = old.training
        tensor = next(itertools.chain(old.parameters(), old.buffers()), None)
        return new.to(device=None if tensor is None else tensor.device)


@dataclass
class HostModel:
    """A model with what it takes to feed it.

    Attributes:
        model: takes and returns a dict of tensors.
        origin: the file, or the model's class.
        kind: ``config``, ``checkpoint``, ``package``, ``compiled`` or ``memory``.
        dtype: of the network.
        type_names: atom types, in the model's order.
        r_max: the cutoff.
        table_tolerance: largest error of a force component that its tables were made for,
            eV/Angstrom; 0 for a model without tables.
        notes: what was changed or left out on the way.
        has_inversion: whether energies stay the same where all vectors are reversed; not in a model
            whose irreps have no parities.
    """

    model: Module
    origin: str
    kind: str
    dtype: torch.dtype
    type_names: list[str]
    r_max: float
    per_edge_type_cutoff: Any = None
    table_tolerance: float = 0.0
    notes: list[str] = field(default_factory=list)
    has_inversion: bool = True

    @property
    def compiled(self) -> bool:
        return self.kind == "compiled"

    def run(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the model returns; of one that compiles itself, what it returns without."""
        raise NotImplementedError

    def frame(self, atoms: Any, types: Sequence[int]) -> dict[str, Tensor]:
        """Data of an ``ase.Atoms`` whose atoms are of the model's types of these numbers."""
        return self.neighbours(structures.of_atoms(atoms, types))

    def neighbours(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """``data`` with the neighbour list of its positions, on the device they are on."""
        raise NotImplementedError

    def batch(self, frames: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One batch of several frames."""
        return structures.together(frames)


@contextlib.contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Names a file that is cut off or of another kind; torch, zip and pickle may raise anything.

    Raises:
        ValueError: whatever was raised inside.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a {kind}, it may be cut off or of another kind: "
            f"{type(error).__name__}: {error}"
        ) from error
