"""What a GPU would run slower than stock, said where a model is made for one.

Until NequIP's modules have their own path on a GPU, tabulated layers run as plain PyTorch there,
and convolutions sort the edges anew in every layer.
"""

from __future__ import annotations

import torch

MAY_BE_SLOW = (
    "on a GPU, fastmlip's convolutions sort the edges anew in every layer and nobody has timed "
    "them: compare with the stock model there before you rely on it"
)
TABULATED = (
    "a tabulated NequIP model is for CPUs: on a GPU its layers run as plain PyTorch, which stores "
    "the weights of every edge and is slower than the stock model; use enable_FastMLIP or the "
    "stock model there"
)


def is_on_gpu(model: torch.nn.Module) -> bool:
    """Whether any parameter or buffer is."""
    return any(t.is_cuda for t in model.state_dict().values())
