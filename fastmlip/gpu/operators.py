"""Work of torch's own operators on a GPU: launches, bytes and FLOPs, from the shapes of a call.

Each operand is read once and each result written once; of a gather only the rows that it takes are
read. An operator makes one launch, a view none; ``SEVERAL`` are the others, as far as the sources
of torch's CUDA kernels say. FLOPs are those of torch's own formulas for matrix products, otherwise
one for each number of the results, or of the operands where there are more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import flop_registry

SEVERAL = {
    "sort": 6,  # radix sort: histograms, scans and passes; it depends on the size
    "argsort": 6,
    "_linalg_det": 4,
    "linalg_inv_ex": 4,
    "index_put": 8,  # of accumulated ones, a sort among them
    "index_put_": 8,
    "_index_put_impl_": 8,
    "embedding_dense_backward": 8,
    "nonzero": 3,
    "unique_dim": 8,
    "_unique2": 8,
    "slice_backward": 2,  # zeros, and a copy
    "select_backward": 2,
}
GATHERS = {"index_select", "index", "gather", "embedding", "take_along_dim"}
INDIRECT = GATHERS | {
    "index_add", "index_add_", "scatter_add", "scatter_add_", "index_put", "index_put_",
    "searchsorted", "index_copy",
}  # fmt: skip
NO_LAUNCH = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided",
             "promote_types", "scalar_tensor", "lift_fresh", "sym_size")  # fmt: skip
FILLS = ("zeros", "new_zeros", "zeros_like", "ones", "ones_like", "new_ones", "full", "full_like",
         "new_full", "zero_", "fill_", "arange")  # fmt: skip


class Work(NamedTuple):
    """Of a call."""

    launches: int
    nbytes: float
    flops: float
    rounds: int  # of memory, one after the other
    double: bool


def nbytes(tensor: torch.Tensor) -> int:
    """Of its memory: an expanded tensor has less than its shape says."""
    size = tensor.numel() * tensor.element_size()
    return min(size, tensor.untyped_storage().nbytes()) if size else 0


def place(tensor: torch.Tensor) -> tuple[int, int, int]:
    """The same for views of the same numbers."""
    return memory(tensor), int(tensor.storage_offset()), int(tensor.numel())


def memory(tensor: torch.Tensor) -> int:
    """The same for tensors that share their memory, also where it is none."""
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)


def tensors(tree: Any) -> list[torch.Tensor]:
    """Each once."""
    return list({place(t): t for t in _leaves(tree)}.values())


def _leaves(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (list, tuple, dict)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(part)


def work(operator: Any, args: Any, kwargs: Any, result: Any) -> Work:
    """Of a call of a torch operator, fake or not."""
    name = operator.overloadpacket.__name__
    results, operands = tensors(result), tensors((args, kwargs))
    written = float(sum(map(nbytes, results)))
    if name in NO_LAUNCH or (not results and name != "_assert_async"):
        return Work(0, 0.0, 0.0, 0, False)
    double = any(t.dtype == torch.float64 for t in (*results, *operands))
    if name in FILLS:
        return Work(1, written, 0.0, 0, double)
    given = {memory(t) for t in operands}
    if not name.endswith("_") and results and all(memory(t) in given for t in results):
        return Work(0, 0.0, 0.0, 0, False)  # a view, or the operand itself
    read = float(sum(map(nbytes, operands)))
    if name in GATHERS:
        rows = (min(nbytes(t), written) for t in operands if t.is_floating_point())
        read = sum(rows) + sum(nbytes(t) for t in operands if not t.is_floating_point())
    if formula := flop_registry.get(operator.overloadpacket):
        flops = float(formula(*args, **kwargs, out_val=result))
    else:
        most = max((t.numel() for t in (*results, *operands)), default=0)
        flops = float(most if any(t.is_floating_point() for t in results) else 0)
    launches = SEVERAL.get(name, 1)
    rounds = launches * (2 if name in INDIRECT else 1)
    return Work(launches, read + written, flops, rounds, double)
