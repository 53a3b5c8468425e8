"""What is said where a model is made for a GPU."""

from __future__ import annotations

import torch

NOT_TIMED = (
    "fastmlip's GPU kernels have not been timed on a GPU: compare with the stock model there "
    "before you rely on them"
)


def is_on_gpu(model: torch.nn.Module) -> bool:
    """Whether any parameter or buffer is."""
    return any(t.is_cuda for t in model.state_dict().values())
