"""Scale and shift by type against NequIP's ``PerTypeScaleShift``, 10 to 1,000,000 atoms.

Energies in float32, five types, the gradients that training asks for: of the energies, and where
scales and shifts are trained, of these too.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from nequip.nn import PerTypeScaleShift as Stock

from fastmlip.nn import PerTypeScaleShift
from fastmlip.testing import assert_close

from .rows import WHATS, Derivatives

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
SIZES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)


def _operands(atoms):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(atoms, 1, generator=random, dtype=torch.float32)
    return x, torch.randint(len(TYPE_NAMES), (atoms, 1), generator=random)


def _derivatives(module, atoms, device="cpu"):
    x, types = (t.to(device) for t in _operands(atoms))
    parameters = [p for p in module.parameters() if p.numel()]
    return Derivatives(
        lambda: module({FIELD: x, "atom_types": types})[FIELD], [x, *parameters], [types]
    )


@cache
def _modules(name, device):
    """Both modules, after they agreed on every derivative of 1,000 atoms."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # as NequIP sets it
    modules = {
        who: kind(TYPE_NAMES, FIELD, irreps_in={FIELD: "1x0e"}, **SETTINGS[name]).to(device)
        for who, kind in (("NequIP", Stock), ("fastmlip", PerTypeScaleShift))
    }
    torch.set_default_dtype(default)
    found = [_derivatives(module, 1_000, device) for module in modules.values()]
    for want, got, order in zip(*(f.all() for f in found), found[0].orders(), strict=True):
        assert_close(got, want, order)
    return modules


@pytest.mark.parametrize("who", ["NequIP", "fastmlip"])
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("atoms", SIZES)
@pytest.mark.parametrize("name", SETTINGS)
def bench_scale_shift(compare, device, name, atoms, what, who):
    derivatives = _derivatives(_modules(name, device)[who], atoms, device)
    # linear in the energies: a pass after the first need not read what a general one must
    moved = derivatives.moved(what) if what == "forward" else None
    compare(
        who, derivatives.timed(what), case=name, what=what, size=("atoms", atoms), moved=moved,
        rounds=25,
    )  # fmt: skip
