"""Allegro's ``TwoBodySphericalHarmonicTensorEmbed``: it hands weights and harmonics on, and leaves
their product to :func:`fastmlip.ops.contraction`, which makes it in cache."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from fastmlip.integrations import inner, mlps
from fastmlip.integrations.allegro import channels, layers
from fastmlip.integrations.derived import Derived, derive, has_kernels

HOST_ATTRIBUTES = (
    "sh", "env_embed_linear", "_edge_weighter", "_output_dtype", "scalar_embedding_in_field",
    "tensor_basis_out_field", "tensor_embedding_out_field",
)  # fmt: skip


class FastTensorEmbed(Derived):
    """What the derived class has in place of the host's."""

    look: inner.Look

    def forward(self: Any, data: dict[str, Any]) -> dict[str, Any]:
        """``data`` with the harmonics of the edges and the weights of the tensor features."""
        x = data[self.scalar_embedding_in_field]
        if not has_kernels(x) or self.altered():
            return super().forward(data)  # type: ignore[misc]
        from nequip.nn import with_edge_vectors_

        data = with_edge_vectors_(data, with_lengths=False)
        harmonics = self.sh(data["edge_vectors"]).to(self._output_dtype)
        irreps = channels.irreps_of(self._edge_weighter)
        data[self.tensor_basis_out_field] = harmonics
        data[layers.HARMONICS] = harmonics.clone()  # who changes the field, changes not this
        data.pop(self.tensor_embedding_out_field, None)  # of an earlier call
        _, data[layers.WEIGHTS] = mlps.with_weights(self.env_embed_linear, x, 0, irreps)
        return data

    @torch.compiler.assume_constant_result
    def altered(self: Any) -> str:
        """What was put inside after the swap and needs the host's forward to run; empty where there
        is nothing."""
        return self.look(lambda: (unsupported(self), list(self.modules())))


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    new = derive(FastTensorEmbed, old)
    new.look = inner.Look()
    return new


def judge(module: Any, model: torch.nn.Module) -> str:
    """Why one cannot be swapped; empty where it can."""
    reason = unsupported(module)
    if not reason and not any(_is_followed(module, row) for row in model.modules()):
        return "no Allegro_Module that fastmlip knows follows it and reads what it makes"
    return reason


def unsupported(module: Any) -> str:
    """Why one cannot be swapped, whatever reads it; empty where it can."""
    missing = [name for name in HOST_ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"an unknown version of Allegro's class, without {', '.join(missing)}"
    if added := inner.added(module):  # a hook finds no features
        return added
    passed_by = [(name, getattr(module, name)) for name in ("_edge_weighter", "env_embed_linear")]
    inside = [
        (f"{name}.{path}".rstrip("."), part)
        for name, child in passed_by for path, part in child.named_modules()
    ]  # fmt: skip
    return (
        channels.unsupported_weighter(module._edge_weighter)
        or mlps.unsupported(module.env_embed_linear, "projection")
        or inner.why_not(inside)
    )


def _is_followed(embed: Any, row: torch.nn.Module) -> bool:
    """Whether the module behind ``embed`` in a sequence takes its factors; one in between would
    find no features."""
    if not isinstance(row, torch.nn.Sequential):
        return False
    modules: list[Any] = list(row)
    return any(
        first is embed
        and layers.is_taken(second)
        and second.tensor_features_in_field == embed.tensor_embedding_out_field
        and second.tensor_basis_in_field == embed.tensor_basis_out_field
        for first, second in pairwise(modules)
    )
