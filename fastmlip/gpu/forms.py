"""A model in the forms that are compared, a crystal to run it on, and the two calls that matter."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fastmlip.integrations import hosts
from fastmlip.integrations.host import READY, HostModel
from fastmlip.integrations.nequip.presets import PRESETS, preset
from fastmlip.integrations.swap import accelerate
from fastmlip.integrations.tabulate import tabulate

Tensor = torch.Tensor
Data = dict[str, Tensor]
STOCK, PRODUCT, EXACT, TABULATED = "stock", "tensor product alone", "exact", "tabulated"
CALLS = ("energy and forces", "training step")
LATTICE = 4.0  # Angstrom, an fcc crystal: some 43 edges a node within 5 Angstrom
TOLERANCE = 1e-4  # of tables, eV/Angstrom


def load(name: str, dtype: str | None = None) -> HostModel:
    """A model of :data:`PRESETS`, or of a file, stock.

    Raises:
        ValueError: neither.
    """
    if name in PRESETS:
        return preset(name, dtype or "float32")
    if not Path(name).exists():
        raise ValueError(f"expected one of {', '.join(PRESETS)}, or a file, got {name!r}")
    host = hosts.load(name, dtype)
    if host.compiled:
        raise ValueError(f"{name}: expected a model that can be changed, got a compiled one")
    return host


def forms(host: HostModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """Stock and fastmlip's; those that the model has none of are left out."""
    stock: Any = host.model
    yield STOCK, stock
    alone = copy.deepcopy(stock)
    if _swap_products(alone):
        yield PRODUCT, alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = accelerate(copy.deepcopy(stock))
    yield EXACT, exact
    if any(known.has_tables(exact) for known in hosts.HOSTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield TABULATED, tabulate(stock, TOLERANCE)


def _swap_products(model: torch.nn.Module) -> bool:
    """NequIP's tensor product and sum over edges, and nothing else; whether there was one."""
    found = {
        one.module: one.host.replace(one.module, model)
        for one in hosts.judge(model)
        if one.verdict.status == READY and type(one.module).__name__ == "TensorProductScatter"
    }
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in found:
                parent._modules[name] = found[child]
    return bool(found)


def crystal(host: HostModel, cells: int, seed: int = 0) -> Data:
    """A disordered fcc crystal of ``4 cells^3`` atoms with all types, and its neighbour list."""
    from ase.build import bulk

    atoms = bulk("Au", "fcc", a=LATTICE * host.r_max / 5.0, cubic=True) * ((cells,) * 3)
    atoms.rattle(0.1 * host.r_max / 5.0, seed=seed)
    random = torch.Generator().manual_seed(seed)
    types = torch.randint(0, len(host.type_names), (len(atoms),), generator=random)
    return host.frame(atoms, types.tolist())


def call(host: HostModel, model: torch.nn.Module, what: str) -> Callable[[Data], list[Tensor]]:
    """One of ``CALLS``: energy and forces of a model whose parameters are frozen, or these and the
    gradients that a loss of both has in the parameters."""
    if what == CALLS[0]:
        frozen = _with(host, copy.deepcopy(model).eval().requires_grad_(False))
        return lambda data: _energy_and_forces(frozen, data)
    trained = _with(host, copy.deepcopy(model).train())
    parameters = [p for p in trained.model.parameters() if p.requires_grad]

    def step(data: Data) -> list[Tensor]:
        energy, forces = _energy_and_forces(trained, data)
        loss = energy.square().mean() / len(forces) ** 2 + forces.square().mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [energy.detach(), forces.detach(), *(g for g in gradients if g is not None)]

    return step


def can_train(form: str) -> bool:
    return form != TABULATED


def _with(host: HostModel, model: torch.nn.Module) -> HostModel:
    other = copy.copy(host)
    other.model = model
    return other


def _energy_and_forces(host: HostModel, data: Data) -> list[Tensor]:
    out = host.run(dict(data))
    return [out["total_energy"], out["forces"]]
