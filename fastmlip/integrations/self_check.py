"""``accelerate`` looks at numbers: energies and forces of one small frame, before and after.

The forwards that are swapped are known (:mod:`fastmlip.integrations.forwards`), so this should find
nothing. It is there for what nobody thought of.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch

from fastmlip.integrations import structures
from fastmlip.integrations.host import HostModel
from fastmlip.integrations.hosts import models_in

Numbers = dict[str, torch.Tensor]
COMPARED = ("atomic_energy", "forces")
# of the largest number of its kind: rounding is a hundredth of that, and with TF32 a tenth
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
TF32_TOLERANCE = 3e-2
INSIDE = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


class SelfCheckError(RuntimeError):
    """Modules that were swapped compute something else; the model is as it was before."""


@contextlib.contextmanager
def undone_on_error(model: torch.nn.Module) -> Iterator[None]:
    """Whatever is raised inside leaves the modules, parameters and buffers of ``model`` as they
    were; old modules share their children with new ones, so each is put back. So are the classes
    of modules, of which those swapped in place get another one."""
    modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    before = [(held, type(held)(held)) for m in modules for held in (vars(m)[n] for n in INSIDE)]
    classes = [(module, type(module)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for held, was in before:
            held.clear()
            held.update(was)
        for module, cls in classes:
            if type(module) is not cls:
                module.__class__ = cls
        raise


@contextlib.contextmanager
def same_numbers(model: torch.nn.Module, wanted: bool | None) -> Iterator[None]:
    """What is done to ``model`` inside must not change its energies and forces.

    Raises:
        SelfCheckError: it did; the message says by how much.
    """
    before = []
    for host in models_in(model) if wanted is not False else []:
        device = _device(host.model)
        if device.type == "cpu" or (wanted and device.type != "meta"):
            before.append((host, *_stock_numbers(host)))
    yield
    for host, frame, stock in before:
        if frame is not None:
            _compare(stock, _numbers(host, frame), host)


def _device(model: torch.nn.Module) -> torch.device:
    return next((t.device for t in model.state_dict().values()), torch.device("cpu"))


def _stock_numbers(host: HostModel) -> tuple[Numbers | None, Numbers]:
    """A frame and what the model says of it; no frame where it says nothing."""
    try:
        frame = structures.small(host)
        numbers = _numbers(host, frame)
    except Exception as error:  # a model of somebody's own may want anything in its data
        why = f"{type(error).__name__}: {error}"
    else:
        if all(bool(t.isfinite().all()) for t in numbers.values()):
            return frame, numbers
        why = "its numbers are not finite"
    warnings.warn(
        f"accelerate could not try the model on four made-up atoms, to compare numbers before and "
        f"after: {why}. Compare them on a frame of yours",
        stacklevel=2,
    )
    return None, {}


def _numbers(host: HostModel, frame: Numbers) -> Numbers:
    device = _device(host.model)
    modes = [(module, module.training) for module in host.model.modules()]
    host.model.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            out = host.run({name: t.to(device, copy=True) for name, t in frame.items()})
    finally:
        for module, training in modes:
            module.training = training
    return {name: out[name].detach().cpu().double() for name in COMPARED if name in out}


def _compare(stock: Numbers, fast: Numbers, host: HostModel) -> None:
    tolerance = TOLERANCES[host.dtype]
    if _device(host.model).type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        tolerance = TF32_TOLERANCE
    wrong = []
    for name, expected in stock.items():
        size = float(expected.abs().max()) or 1.0
        found = fast.get(name, torch.full_like(expected, torch.nan))
        error = float((found - expected).abs().max()) / size
        if not error <= tolerance:
            wrong.append(f"{name} by {error:.1e} of {size:.1e}")
    if wrong:
        raise SelfCheckError(
            f"with fastmlip's modules {type(host.model).__name__} computes something else for four "
            f"made-up atoms, so it was left as it was: off are {', '.join(wrong)} (allowed: "
            f"{tolerance:.0e}). fastmlip.summary lists the modules; fastmlip.check says more"
        )
