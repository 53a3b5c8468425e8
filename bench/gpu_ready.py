"""Whether ``make gpu`` can begin: torch, its GPU and Triton, before anything is installed."""

from __future__ import annotations

import re
import sys

OLDEST = {"torch": (2, 11), "triton": (3, 6)}


def objection(device: str) -> str:
    """What is missing, nothing where all is there."""
    for name, oldest in OLDEST.items():
        wanted = f"{name} {'.'.join(map(str, oldest))} or newer"
        try:
            version = __import__(name).__version__
        except Exception as error:  # a broken installation raises anything
            return f"{wanted} is needed in {sys.executable}: {type(error).__name__}: {error}"
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < oldest:
            return f"{wanted} is needed in {sys.executable}, there is {version}"
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} of {sys.executable} sees no GPU"
    return ""


if __name__ == "__main__":
    if why := objection(sys.argv[1]):
        sys.exit(f"make gpu: {why}. Name another Python with `make gpu PYTHON=...`")
