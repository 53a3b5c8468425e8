"""Graphs as the hosts make them."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx


def traced(module, inputs):
    """As nequip.utils.fx traces a model: symbolic, forces included, no duck shapes."""
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        return make_fx(
            module, tracing_mode="symbolic", _allow_non_fake_inputs=True,
            _error_on_data_dependent_ops=True,
        )(*inputs)  # fmt: skip
