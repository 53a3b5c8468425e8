"""Scale and shift by type against NequIP's ``PerTypeScaleShift``, 10 to 1,000,000 atoms.

Energies in float32, five types, the gradients that training asks for: of the energies, and where
scales and shifts are trained, of these too. A row runs its function many times, so that its
milliseconds are those of the number of calls it names.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from nequip.nn import PerTypeScaleShift as Stock

from fastmlip.nn import PerTypeScaleShift
from fastmlip.testing import assert_close

TYPE_NAMES = ["H", "C", "N", "O", "S"]
FIELD = "atomic_energy"
SCALES = dict(zip(TYPE_NAMES, (1.5, -0.3, 2.25, 1.0, 0.7), strict=True))
SHIFTS = dict(zip(TYPE_NAMES, (-13.6, -1029.2, -1484.9, -2041.8, -10832.1), strict=True))
SETTINGS = {
    "one value": {"scales": 1.5, "shifts": -7.0},
    "per type": {"scales": SCALES, "shifts": SHIFTS},
    "per type, trained": {
        "scales": SCALES, "shifts": SHIFTS, "scales_trainable": True, "shifts_trainable": True,
    },
}  # fmt: skip
ORDERS = {"forward": 0, "forward+backward": 1, "forward+backward+double backward": 2}
SIZES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)


def _operands(atoms):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(atoms, 1, generator=random, dtype=torch.float32)
    return x, torch.randint(len(TYPE_NAMES), (atoms, 1), generator=random)


def _runner(module, atoms, order):
    x, types = _operands(atoms)
    leaves = [x.requires_grad_(order > 0), *(p for p in module.parameters() if p.numel())]
    grad = torch.ones(atoms, 1, dtype=torch.float64).requires_grad_(order == 2)
    directions = [torch.ones_like(leaf) for leaf in leaves]

    def run():
        with torch.set_grad_enabled(order > 0):
            out = module({FIELD: x, "atom_types": types})[FIELD]
        if order == 0:
            return [out]
        first = torch.autograd.grad(out, leaves, grad, create_graph=order == 2)
        if order == 1:
            return [out, *first]
        pairs = zip(first, directions, strict=True)
        reached, along = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
        second = torch.autograd.grad(
            reached, [grad, *leaves], along, allow_unused=True, materialize_grads=True
        )
        return [out, *first, *second]

    return run


@cache
def _modules(name):
    """Both modules, after they agreed on every derivative of 1,000 atoms."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # as NequIP sets it
    modules = {
        who: kind(TYPE_NAMES, FIELD, irreps_in={FIELD: "1x0e"}, **SETTINGS[name])
        for who, kind in (("peer", Stock), ("fastmlip", PerTypeScaleShift))
    }
    torch.set_default_dtype(default)
    for order in ORDERS.values():
        results = [_runner(module, 1_000, order)() for module in modules.values()]
        for want, got in zip(*results, strict=True):
            assert_close(got, want, order)
    return modules


@pytest.mark.parametrize("who", ["peer", "fastmlip"])
@pytest.mark.parametrize("what", ORDERS)
@pytest.mark.parametrize("atoms", SIZES)
@pytest.mark.parametrize("name", SETTINGS)
def bench_scale_shift(compare, name, atoms, what, who):
    run = _runner(_modules(name)[who], atoms, ORDERS[what])
    calls = max(1, min(300, 100_000 // atoms))

    def many():
        for _ in range(calls):
            run()

    note = f"{calls} calls" if calls > 1 else "1 call"
    compare(who, many, f"{name}, {atoms} atoms, {what}", rounds=25, note=note)
