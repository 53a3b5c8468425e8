"""What a row times: a function or its derivatives, on operands made beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Tensor = torch.Tensor
PASSES = ("forward", "backward", "double backward")
# a row's name, and the passes that it runs
WHATS = {
    "forward": PASSES[:1],
    "forward+backward": PASSES[:2],
    "forward+backward+double backward": PASSES,
    "double backward": PASSES[2:],
}


class Derivatives:
    """``function()`` of the leaves ``operands``, its gradients, and the gradients of those.

    The backward pass contracts the outputs with fixed random tensors; the double backward pass
    contracts those gradients with others, and differentiates in the contractions and the operands.
    ``others`` are tensors that the function reads and has no gradient in, such as indices.
    """

    def __init__(
        self,
        function: Callable[[], Tensor | Sequence[Tensor]],
        operands: Sequence[Tensor],
        others: Sequence[Tensor] = (),
    ) -> None:
        self.function, self.others = function, others
        self.operands = [operand.requires_grad_() for operand in operands]
        random = torch.Generator().manual_seed(1)

        def draw(t: Tensor) -> Tensor:
            return torch.randn(t.shape, generator=random).to(t.device, t.dtype)

        self.grads = [draw(output).requires_grad_() for output in self.forward()]
        self.directions = [draw(operand) for operand in self.operands]

    def forward(self) -> Sequence[Tensor]:
        with torch.no_grad():
            return self._outputs()

    def _outputs(self) -> Sequence[Tensor]:
        outputs = self.function()
        return (outputs,) if isinstance(outputs, Tensor) else outputs

    def backward(self, create_graph: bool = False) -> list[Tensor]:
        outputs = self._outputs()
        first = torch.autograd.grad(
            outputs, self.operands, self.grads, create_graph=create_graph, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        return [*outputs, *first]

    def double_backward(self, first: Sequence[Tensor], again: bool = False) -> Sequence[Tensor]:
        """From the last ``len(operands)`` of ``first``, which carry a graph; ``again``: keep it."""
        first = first[-len(self.operands) :]
        pairs = [p for p in zip(first, self.directions, strict=True) if p[0].requires_grad]
        reached, directions = zip(*pairs, strict=True)
        return torch.autograd.grad(
            reached, [*self.grads, *self.operands], directions, retain_graph=again,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip

    def all(self) -> list[Tensor]:
        """Outputs, first and second derivatives, for a comparison before anything is timed."""
        first = self.backward(create_graph=True)
        return [*first, *self.double_backward(first)]

    def orders(self) -> list[int]:
        """Derivative order of each tensor of :meth:`all`."""
        outputs, operands = len(self.grads), len(self.operands)
        return [0] * outputs + [1] * operands + [2] * (outputs + operands)

    def timed(self, what: str) -> Callable[[], Any]:
        """The function that a row called ``what`` times. For the double backward pass alone,
        everything before it is done here, once."""
        if what == "forward":
            return self.forward
        if what == "forward+backward":
            return self.backward
        if what == "double backward":
            first = self.backward(create_graph=True)
            return lambda: self.double_backward(first, again=True)
        return self.all

    def moved(self, what: str) -> int:
        """Bytes that ``what`` must move at least: what it reads and writes, each once."""

        def size(tensors: Sequence[Tensor]) -> int:
            return sum(t.numel() * t.element_size() for t in tensors)

        read, outputs, operands = (
            size([*self.operands, *self.others]), size(self.grads), size(self.operands),
        )  # fmt: skip
        moved = {
            "forward": read + outputs,
            "backward": outputs + read + operands,
            "double backward": operands + outputs + read + outputs + operands,
        }
        return sum(moved[each] for each in WHATS[what])


def total(flops: Mapping[str, float], what: str) -> float:
    """Floating-point operations of a row, from those of each pass."""
    return sum(flops[each] for each in WHATS[what])
