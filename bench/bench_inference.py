"""Energy and forces of frozen NequIP presets as compiled models: stock, exact, tabulated.

Every model is exported with AOTInductor first (minutes each), and stock also runs eager: its better
time is the one to beat. Structures: a 108-atom and a 1,372-atom disordered fcc alloy, and 192 atoms
of water; cutoff 5 A, float32. Rows of ``scaling`` go from 108 to 100,000 atoms, the largest
system also in random order, with the settings of glibc's allocator that docs/molecular_dynamics.md
advises.
"""

from __future__ import annotations

import copy
import ctypes
import json
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from time import perf_counter

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.scripts._compile_utils import ASE_TARGET, single_frame_data_settings
from nequip.utils.aot import aot_export_model
from nequip.utils.global_state import set_global_state

import fastmlip
from fastmlip.testing.process import run_python

from .bench_nequip import _models, _peak_memory
from .work import count

STRUCTURES = ("108-atom alloy", "1372-atom alloy", "192-atom water")
WHO = {
    "NequIP": "eager",
    "NequIP AOTInductor": "peer",
    "fastmlip exact": "exact",
    "fastmlip tabulated": "tabulated",
}
# memory stays with the process and in huge pages
ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=68719476736"
)
CELLS = {108: 3, 1372: 7, 10976: 14, 97556: 29}
SIZES = [f"{atoms}-atom alloy" for atoms in CELLS] + ["97556-atom alloy, shuffled"]
TURNS = 7  # of all sizes


def _alloy(name):
    atoms = bulk("Au", "fcc", a=4.0, cubic=True) * ((CELLS[int(name.split("-")[0])],) * 3)
    atoms.rattle(0.1, seed=1)
    return atoms[np.random.default_rng(0).permutation(len(atoms))] if "shuffled" in name else atoms


def _water():
    """64 molecules in random orientations on a grid, at the density of water."""
    random = np.random.default_rng(0)
    edge = (64 * 29.9) ** (1 / 3)
    box = Atoms(cell=[edge] * 3, pbc=True)
    for corner in np.ndindex(4, 4, 4):
        one = molecule("H2O")
        one.rotate(random.uniform(0, 360), random.normal(size=3))
        one.translate((np.array(corner) + 0.5) * edge / 4 - one.get_center_of_mass())
        box += one
    return box


@cache
def _frame(name):
    set_global_state(allow_tf32=False)  # the dtype of positions
    atoms = _water() if "water" in name else _alloy(name)
    data = compute_neighborlist_(from_ase(atoms), r_max=5.0)
    types = torch.randint(0, 3, (len(atoms),), generator=torch.Generator().manual_seed(0))
    data[AtomicDataDict.ATOM_TYPE_KEY] = types
    return single_frame_data_settings(data)


def _atoms(data):
    return len(data[AtomicDataDict.ATOM_TYPE_KEY])


@cache
def _variants(preset):
    stock = _models(preset, agree=False)["peer"].eval()
    exact = fastmlip.accelerate(copy.deepcopy(stock)).requires_grad_(False)
    return {"peer": stock, "exact": exact, "tabulated": fastmlip.tabulate(stock)}


def export(model, name):
    """The file of the model, exported for ASE."""
    dim = torch.export.Dim
    shapes = {
        "graph": dim.STATIC,
        "node": dim("num_nodes", min=2, max=10**9),
        "edge": dim("num_edges", min=2, max=10**9),
    }
    file = str(Path(mkdtemp()) / f"{name}.nequip.pt2")
    inputs, outputs = ASE_TARGET["input"], ASE_TARGET["output"]
    aot_export_model(model, "cpu", inputs, outputs, dict(_frame(STRUCTURES[0])), shapes, file)
    return file


@cache
def _package(preset, who):
    return export(copy.deepcopy(_variants(preset)[who]), f"{preset}_{who}")


@cache
def _compiled(preset, who):
    return torch._inductor.aoti_load_package(_package(preset, who))


@cache
def _work(preset, who, structure):
    """What energy and forces of a frozen model must do at least; nothing for stock models, which do
    more than that."""
    if who not in ("exact", "tabulated"):
        return {}
    model, data = _variants(preset)[who], dict(_frame(structure))
    return count(lambda: model(data))._asdict()


def _run(compiled, data):
    with torch.inference_mode():
        values = compiled([data[key] for key in ASE_TARGET["input"]])
    return dict(zip(ASE_TARGET["output"], values, strict=True))


@pytest.mark.parametrize("who", list(WHO))
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("preset", ["S", "M", "L"])
def bench_inference(compare, preset, structure, who):
    data = _frame(structure)
    want = _variants(preset)["peer"](dict(data))["forces"]
    if WHO[who] == "eager":
        model, run = _variants(preset)["peer"], lambda m, d: m(dict(d))
    else:
        model, run = _compiled(preset, WHO[who]), _run
    error = (run(model, data)["forces"] - want).abs().max()
    assert error <= 1e-5 * max(1.0, want.abs().max())
    compare(
        who, lambda: run(model, data), rounds=100, case=f"NequIP {preset}",
        what=f"energy+forces, {structure}", size=("atoms", _atoms(data)),
        **_work(preset, WHO[who], structure),
        max_force_error=float(error), note=f"max |dF| {error:.1e}",
    )  # fmt: skip


def _us_per_atom(package):
    """Of every size, one after the other and that again and again, so that whatever else a machine
    does falls on all of them: the median of turns of a second or a call. For a fresh process."""
    model = torch._inductor.aoti_load_package(package)
    frames = {name: _frame(name) for name in SIZES}
    found = {name: [] for name in SIZES}
    for _ in range(1 + TURNS):
        for name, data in frames.items():
            calls, start = 0, perf_counter()
            while (passed := perf_counter() - start) < 1:
                _run(model, data)
                calls += 1
            found[name].append(passed * 1e6 / calls / _atoms(data))
    return {name: median(times[1:]) for name, times in found.items()}


def _kib_per_atom(package, name):
    """Peak memory of energy and forces; for a fresh process."""
    model, data = torch._inductor.aoti_load_package(package), _frame(name)
    _run(model, _frame(STRUCTURES[0]))
    ctypes.CDLL(None).malloc_trim(0)  # what making the neighbour list left
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak_memory()
    for _ in range(3):
        _run(model, data)
    return (_peak_memory() - before) * 1024 / _atoms(data)


@cache
def _fresh(function, preset, who, *arguments):
    """What a function of this file prints in a process of its own."""
    call = f"b.{function}({_package(preset, who)!r}, *{arguments!r})"
    code = f"import json; from fastmlip.bench import bench_inference as b; r = json.dumps({call})"
    printed = run_python(code + "; print(r)", timeout=1800, GLIBC_TUNABLES=ALLOCATOR)
    return json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("who", ["exact", "tabulated"])
def bench_scaling(compare, who, name):
    """Time and memory for an atom: flat, where nothing is quadratic."""
    us_per_atom = _fresh("_us_per_atom", "S", who)[name]
    kib_per_atom = _fresh("_kib_per_atom", "S", who, name)
    compare(
        f"fastmlip {who}", lambda: None, rounds=1, case="NequIP S", what=f"scaling, {name}",
        us_per_atom=us_per_atom, kib_per_atom=kib_per_atom,
        note=f"{us_per_atom:.1f} us and {kib_per_atom:.0f} KiB an atom",
    )  # fmt: skip
