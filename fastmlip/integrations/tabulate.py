"""``tabulate`` a model in memory: inference with splines in the place of networks."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fastmlip.integrations.host import TOLERANCE
from fastmlip.integrations.hosts import HOSTS
from fastmlip.integrations.swap import accelerate

if TYPE_CHECKING:
    import ase

Model = TypeVar("Model", bound=torch.nn.Module)


def tabulate(
    model: Model, tol: float = TOLERANCE, structures: ase.Atoms | Iterable[ase.Atoms] | None = None
) -> Model:
    """An accelerated copy of a model of NequIP's, Allegro's, SevenNet's or MACE's with tables of
    the distance, for inference.

    In every layer of NequIP, SevenNet and MACE the weights of the tensor product are a function of
    the (normalised) distance alone; in Allegro, the scalar embedding and all that is linear in it
    are one of the distance and the two types. The copy takes them from quintic B-splines on a
    uniform grid of the whole range from 0 to the cutoff, where they go to zero smoothly; forces are
    the exact derivative of its energy. The grid is refined until no force component of the probe
    structures is off by more than ``tol``; ``fastmlip.summary`` and a compiled model's metadata say
    what was reached. Molecules, dimers and trimers with bonds from 0.1 r_max on are always among
    these structures. The copy takes no state dict, which its tables would not follow.

    Args:
        model: stock or accelerated, in evaluation mode. It stays as it is.
        tol: largest error of a force component, in eV/Angstrom (the model's units).
        structures: frames to compare forces on, with the model's type names as symbols; by default
            disordered cells with all types at three densities. An Allegro model has tables for
            pairs of the types in these structures alone, and an error for others.

    Raises:
        ValueError: the model is in training mode, has nothing to tabulate, or ``tol`` cannot be
            reached, with what was reached.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError(
            "model: it is in training mode, and tabulated weights cannot be trained; call "
            "model.eval() on a finished model first"
        )
    fast = accelerate(copy.deepcopy(model))
    tabulate_(fast, tol, [structures] if hasattr(structures, "get_positions") else structures)
    return fast


def tabulate_(model: Any, tol: float | None, structures: Iterable[Any] | None = None) -> None:
    """Tabulate an accelerated model in place, by whichever host has tables for it."""
    for host in HOSTS:
        if host.tabulate is not None and host.has_tables(model):
            host.tabulate(model, tol, structures)
            return
    raise ValueError(
        f"model: nothing to tabulate in {type(model).__name__}: it has no layers that "
        "fastmlip accelerates (see fastmlip.summary)"
    )
