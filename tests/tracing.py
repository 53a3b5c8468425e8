"""Graphs as the hosts make them, and on a GPU that is not there."""

import contextlib
import warnings
from unittest import mock

import torch
from torch._subclasses import FakeTensorMode
from torch.export import export
from torch.fx.experimental.proxy_tensor import make_fx


def traced(module, inputs):
    """As nequip.utils.fx traces a model: symbolic, forces included, no duck shapes."""
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        return make_fx(
            module, tracing_mode="symbolic", _allow_non_fake_inputs=True,
            _error_on_data_dependent_ops=True,
        )(*inputs)  # fmt: skip


@contextlib.contextmanager
def unguarded():
    """``~x`` and ``x[index]``, as decompositions of torch have them, without the guard of a device,
    of which a torch without CUDA has none."""
    getitem = torch.Tensor.__getitem__

    def item(x, at):
        if isinstance(at, tuple) and isinstance(at[-1], torch.Tensor):
            return torch.ops.aten.index.Tensor(x, [*(None,) * (len(at) - 1), at[-1]])
        return getitem(x, at)

    with (
        mock.patch.object(torch.Tensor, "__invert__", lambda x: torch.bitwise_not(x)),
        mock.patch.object(torch.Tensor, "__getitem__", item),
    ):
        yield


def exported_on_gpu(module, make_inputs, dynamic_shapes):
    """``module`` exported on the fake cuda tensors that ``make_inputs()`` gives.

    Autograd needs a device to run on, so rungs of a ladder are called one by one.
    """
    with FakeTensorMode(), unguarded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(module, make_inputs(), dynamic_shapes=dynamic_shapes)


def values(nodes):
    """The fake tensors of a graph's nodes."""
    return [node.meta["val"] for node in nodes]
