"""Steps of ``fastmlip gpu-check``, each in a process of its own.

python -m fastmlip.bench.gpu_steps STEP --device cuda --out FILE [--small]

A step writes a line of JSON for each thing that it checked or timed, as soon as it is done: one
that is stopped keeps what it has. ``--small`` is for tests on a CPU.
"""

from __future__ import annotations

import copy
import json
import statistics
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer

from fastmlip.gpu import forms
from fastmlip.integrations.host import HostModel
from fastmlip.integrations.nequip.presets import preset
from fastmlip.testing import relative_error

from .environment import environment, synchronize
from .results import Row

Tensor = torch.Tensor
ROUNDS, WARM_UP = 30, 3
CELLS = {108: 3, 1372: 7, 10976: 14}
GRAPHED = 1372  # the largest system whose calls are also replayed from a CUDA graph
# of whole models against stock on the CPU: largest error over the largest number of its kind. The
# float32 figures leave room for the order of sums
TOLERANCES = {"float64": 1e-11, "float32": 1e-4}


class Step:
    """What a step knows, and where its results go."""

    def __init__(self, device: str, out: Path, small: bool, seconds: float) -> None:
        self.device, self.out, self.small, self.seconds = device, out, small, seconds

    def _write(self, kind: str, **values: Any) -> None:
        with self.out.open("a") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")

    def check(self, name: str, error: float, tolerance: float) -> None:
        """An error that must not exceed a tolerance, and must be a number."""
        passed = error <= tolerance
        self._write("check", name=name, error=error, tolerance=tolerance, passed=passed, why="")

    def failed(self, name: str, problem: BaseException) -> None:
        why = f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0]}"
        self._write("check", name=name, error=None, tolerance=None, passed=False, why=why)

    def left_out(self, name: str, why: str) -> None:
        self._write("left out", name=name, why=why)

    def environment(self, values: dict[str, Any]) -> None:
        self._write("environment", values=values)

    def row(self, times: list[float], who: str, **about: Any) -> None:
        ordered = sorted(times)
        quarter = len(ordered) // 4
        spread = ordered[-1 - quarter] - ordered[quarter]
        row = Row(
            who=who, median=statistics.median(times), min=ordered[0], iqr=spread,
            rounds=len(times), threads=torch.get_num_threads(), device=self.device, **about,
        )  # fmt: skip
        self._write("row", **asdict(row))

    def time(self, function: Callable[[], Any], seconds: float) -> list[float]:
        """Seconds of each call, after a warm-up: by CUDA events, on a CPU by the clock."""
        for _ in range(1 if self.small else WARM_UP):
            function()
        synchronize(self.device)
        start = perf_counter()
        found: list[float] = []
        while len(found) < (2 if self.small else ROUNDS):
            found.append(_once(function, self.device))
            if len(found) >= 2 and perf_counter() - start > seconds:
                break
        return found


def _once(function: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        start = perf_counter()
        function()
        return perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def replayed(function: Callable[[], Any]) -> Callable[[], Any]:
    """``function`` captured in a CUDA graph, after its kernels were compiled.

    Raises:
        RuntimeError: something in it waits for the device, or allocates outside of the graph.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = function()

    def replay(kept: Any = kept) -> Any:
        graph.replay()
        return kept

    return replay


# ---------------------------------------------------------------- the steps


def machine(step: Step) -> None:
    """What there is, and a copy and a matrix product, which all that follows is compared with."""
    found = environment(step.device)
    step.environment(found)
    for name, value in found["peaks"].items():
        step.check(f"{name} is a number", 0.0 if value > 0 else float("inf"), 0.0)


def parity(step: Step, size: str) -> None:
    """Energy, forces and the gradients of a loss of both, on the device, against stock on the CPU
    with the same weights."""
    for dtype, tolerance in TOLERANCES.items():
        host = preset(f"NequIP-{size}", dtype)
        data = forms.crystal(host, 1 if step.small else 2)
        want = forms.call(host, host.model, forms.CALLS[1])(data)
        names = ["energy", "forces", *(f"gradient {n}" for n in range(len(want) - 2))]
        for form, model in _variants(host, tabulated=False).items():
            got = _on(host, model, forms.CALLS[1], data, step.device)()
            pairs = list(zip(names, got, want, strict=True))
            largest = max(float(w.abs().max()) for _, _, w in pairs[2:])
            errors: dict[str, float] = {}
            for name, a, b in pairs:
                kind = name.split(" ")[0]
                scale = largest if kind == "gradient" else float(b.abs().max())
                error = relative_error(a.cpu(), b, scale)
                errors[kind] = max(errors.get(kind, 0.0), error)
            for kind, error in errors.items():
                step.check(f"NequIP {size} {dtype} {form}: {kind}", error, tolerance)


def operators(step: Step) -> None:
    """The tensor product against e3nn and whatever else is installed, after all agreed with the
    reference on every derivative."""
    from .bench_tensor_product_conv import DEGREE, WHATS, _derivatives, _function, _inputs
    from .peers import convolutions
    from .rows import total

    cases = ["nequip-S-hidden"] if step.small else [f"nequip-{s}-hidden" for s in "SML"]
    sizes = (8,) if step.small else (108, 1372)
    seconds = step.seconds / 2 / (len(cases) * len(sizes) * 3 * 3)
    for case in cases:
        for who in (*convolutions(step.device), "fastmlip"):
            try:
                function = _function(case, who, step.device)
            except Exception as problem:  # whatever a peer raises
                _of_a_peer(step, who, f"{who} on {case}", problem)
                continue
            for nodes in sizes:
                inputs = _inputs(_CASES()[case], nodes, step.device)
                for what in list(WHATS)[:3]:
                    unit = _CASES()[case].problem.flops_per_edge * nodes * DEGREE
                    flops = {"forward": unit, "backward": 3 * unit, "double backward": 7 * unit}
                    about: dict[str, Any] = {
                        "operator": "tensor_product_conv", "case": case, "size_of": "edges",
                        "size": nodes * DEGREE, "flops": total(flops, what),
                    }  # fmt: skip
                    try:
                        derivatives = _derivatives(function, inputs)
                        run, moved = derivatives.timed(what), derivatives.moved(what)
                        step.row(step.time(run, seconds), who, what=what, moved=moved, **about)
                        if step.device != "cpu" and nodes == 108:
                            times = step.time(replayed(run), seconds)
                            what += ", CUDA graph"
                            step.row(times, who, what=what, moved=moved, **about)
                    except Exception as problem:
                        _of_a_peer(step, who, f"{who} on {case}, {nodes} nodes, {what}", problem)


def _CASES() -> Any:
    from .bench_tensor_product_conv import CASES

    return CASES


def _of_a_peer(step: Step, who: str, name: str, problem: BaseException) -> None:
    """A failure of fastmlip is one of the step; a peer's is said."""
    if who.startswith("fastmlip"):
        step.failed(name, problem)
    else:
        step.left_out(name, f"{type(problem).__name__}: {problem}"[:300])


def models(step: Step, size: str) -> None:
    """Energy and forces of frozen models of three sizes of a crystal, and a training step of the
    smallest: stock and fastmlip, after they agreed on the forces."""
    host = preset(f"NequIP-{size}")
    sizes = {4: 1} if step.small else CELLS
    variants = _variants(host, tabulated=False)
    seconds = step.seconds / (len(sizes) + 1) / 4
    for atoms, cells in sizes.items():
        data = forms.crystal(host, cells)
        for what in forms.CALLS if atoms == min(sizes) else forms.CALLS[:1]:
            want: Tensor | None = None
            for form, model in variants.items():
                who = "NequIP" if form == forms.STOCK else f"fastmlip {form}"
                name = f"NequIP {size} {what}, {atoms} atoms, {who}"
                about = {
                    "operator": "whole model", "case": f"NequIP {size}",
                    "size_of": "atoms", "size": atoms,
                }  # fmt: skip
                try:
                    run = _on(host, model, what, data, step.device)
                    forces = run()[1].detach()
                    if want is None:
                        want = forces
                    else:
                        error = relative_error(forces, want, float(want.abs().max()))
                        step.check(f"{name}: forces", error, TOLERANCES["float32"])
                    step.row(step.time(run, seconds), who, what=what, **about)
                    if step.device != "cpu" and atoms <= GRAPHED:
                        graphed = f"{what}, CUDA graph"
                        step.row(step.time(replayed(run), seconds), who, what=graphed, **about)
                except Exception as problem:  # out of memory, for instance, which stock may be
                    _of_a_peer(step, who, name, problem)
                    if step.device != "cpu":
                        torch.cuda.empty_cache()


def compiled(step: Step, size: str) -> None:
    """Energy and forces of stock and of fastmlip compiled by AOTInductor, which takes a minute
    each."""
    from nequip.scripts._compile_utils import ASE_TARGET, single_frame_data_settings
    from nequip.utils.aot import aot_export_model

    host = preset(f"NequIP-{size}")
    dim = torch.export.Dim
    shapes = {"graph": dim.STATIC, "node": dim("num_nodes", min=2), "edge": dim("num_edges", min=2)}
    frames = [forms.crystal(host, cells) for cells in ((1, 2) if step.small else (3, 7))]
    small, large = (
        {key: value.to(step.device) for key, value in single_frame_data_settings(frame).items()}
        for frame in frames
    )
    inputs, outputs = ASE_TARGET["input"], ASE_TARGET["output"]
    for form, model in _variants(host, tabulated=False).items():
        who = "NequIP AOTInductor" if form == forms.STOCK else f"fastmlip {form} AOTInductor"
        model = copy.deepcopy(model).requires_grad_(False).to(step.device)
        file = str(step.out.with_suffix(f".{form}.nequip.pt2"))
        try:
            aot_export_model(model, step.device, inputs, outputs, dict(small), shapes, file)
            loaded = torch._inductor.aoti_load_package(file)
            for data in (small, large):
                want = forms.call(host, host.model, forms.CALLS[0])(
                    {k: v.cpu() for k, v in data.items()}
                )
                run = partial(loaded, [data[key] for key in inputs])
                forces = dict(zip(outputs, run(), strict=True))["forces"].cpu()
                error = relative_error(forces, want[1], float(want[1].abs().max()))
                atoms = len(data["pos"])
                step.check(
                    f"NequIP {size}, {atoms} atoms, {who}: forces", error, TOLERANCES["float32"]
                )
                step.row(step.time(run, 2.0), who, operator="whole model", case=f"NequIP {size}",
                         what=forms.CALLS[0], size_of="atoms", size=atoms)  # fmt: skip
        except Exception as problem:
            _of_a_peer(step, who, f"NequIP {size}, {who}", problem)


def _variants(host: HostModel, tabulated: bool) -> dict[str, torch.nn.Module]:
    found = {}
    for form, model in forms.forms(host):
        if form == forms.TABULATED and not tabulated:
            break  # it is made last, and takes long
        if form != forms.PRODUCT:
            found[form] = model
        if form == forms.EXACT and not tabulated:
            break
    return found


def _on(
    host: HostModel, model: torch.nn.Module, what: str, data: dict[str, Tensor], device: str
) -> Callable[[], list[Tensor]]:
    moved = copy.deepcopy(model).to(device)
    there = {key: value.to(device) for key, value in data.items()}
    run = forms.call(host, moved, what)
    return lambda: run(there)


STEPS: dict[str, Callable[[Step], None]] = {
    "machine": machine,
    **{f"parity-{size}": partial(parity, size=size) for size in "SML"},
    "operators": operators,
    **{f"models-{size}": partial(models, size=size) for size in "SML"},
    **{f"compiled-{size}": partial(compiled, size=size) for size in "S"},
}


def main(
    name: str,
    device: Annotated[str, typer.Option()],
    out: Annotated[Path, typer.Option()],
    seconds: Annotated[float, typer.Option()] = 60.0,
    small: Annotated[bool, typer.Option("--small")] = False,
) -> None:
    """Run one step; its limit of time is the business of who started it."""
    warnings.simplefilter("ignore")
    step = Step(device, out, small, seconds)
    out.touch()
    STEPS[name](step)


if __name__ == "__main__":
    typer.run(main)
