"""torch.compile's own source of Triton kernels, for a GPU that is not there.

Inductor writes the source of a kernel once more into the module that it generates, with the
functions and constants that it finds in there. :func:`emitted` takes a graph through it on a
machine without CUDA, :func:`compiled` compiles what came out as Inductor would.
"""

import contextlib
import importlib.util
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.aot_autograd import aot_export_module
from torch._guards import TracingContext, tracing
from torch._inductor import compile_fx, config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.runtime import triton_helpers
from tracing import unguarded, values
from triton.backends.compiler import GPUTarget

PROPERTIES = SimpleNamespace(
    name="H100", major=9, minor=0, multi_processor_count=132, warp_size=32, total_memory=2**36,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
)  # fmt: skip


class Hopper:
    """All that torch asks of Triton's driver where nothing is launched."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@contextlib.contextmanager
def hopper():
    """torch and Triton as if there were an H100, on which nothing can run."""
    patches = (
        unguarded(),
        mock.patch.object(triton.runtime.driver, "_active", Hopper()),
        mock.patch.object(torch.cuda, "get_device_properties", lambda device=None: PROPERTIES),
        mock.patch.object(
            CudaInterface, "get_device_properties", staticmethod(lambda device=None: PROPERTIES)
        ),
        mock.patch.object(
            CudaInterface, "get_compute_capability", staticmethod(lambda device=None: 90)
        ),
        mock.patch.object(torch._C, "_cuda_getCurrentRawStream", None, create=True),
        mock.patch.object(triton_helpers, "set_driver_to_gpu", lambda: None),
        mock.patch("torch._inductor.scheduler.has_triton", lambda: True),
    )
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def graph(exported, module):
    """``(graph module, fakes)`` of ``module`` as Inductor gets it: of functions, decomposed."""
    fakes = values(n for n in exported.graph.nodes if n.op == "placeholder")
    with fakes[0].fake_mode:
        made, _ = aot_export_module(
            module, fakes, trace_joint=False, decompositions=compile_fx.select_decomp_table()
        )
    return made, fakes


def emitted(graph_module, fakes):
    """``[(name, source)]`` of the kernels in the graph that are not Inductor's own."""
    found = []

    def take(self, name, source, device_str="cuda"):
        if "user_autotune" in source:
            found.append((name, source))

    with (
        config.patch(fx_graph_cache=False, force_disable_caches=True, compile_threads=1),
        hopper(),
        mock.patch.object(AsyncCompile, "triton", take),
        tracing(TracingContext(fakes[0].fake_mode)),
    ):
        compile_fx.compile_fx_inner(graph_module, fakes)
    return found


def compiled(name, source, folder):
    """The emitted kernel, compiled by the code that Inductor has for it."""
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    with hopper():
        spec.loader.exec_module(module)
        kernel = getattr(module, name)
        return kernel._precompile_config(kernel.configs[0]).kernel
