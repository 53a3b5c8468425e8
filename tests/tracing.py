"""Graphs as the hosts make them, and on a GPU that is not there."""

import warnings

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


def exported_on_gpu(module, make_inputs, dynamic_shapes):
    """``module`` exported on the fake cuda tensors that ``make_inputs()`` gives.

    Autograd needs a device to run on, so rungs of a ladder are called one by one.
    """
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(module, make_inputs(), dynamic_shapes=dynamic_shapes)


def values(nodes):
    """The fake tensors of a graph's nodes."""
    return [node.meta["val"] for node in nodes]
