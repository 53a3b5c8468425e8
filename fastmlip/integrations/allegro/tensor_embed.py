"""Allegro's ``TwoBodySphericalHarmonicTensorEmbed``: it hands weights and harmonics on, and leaves
their product to :func:`fastmlip.ops.contraction`, which makes it in cache."""

from __future__ import annotations

from typing import Any

import torch

from fastmlip.integrations import mlps
from fastmlip.integrations.allegro import channels, layers
from fastmlip.integrations.derived import Derived, derive, is_cpp

HOST_ATTRIBUTES = (
    "sh", "env_embed_linear", "_edge_weighter", "_output_dtype", "scalar_embedding_in_field",
    "tensor_basis_out_field", "tensor_embedding_out_field",
)  # fmt: skip


class FastTensorEmbed(Derived):
    """What the derived class has in place of the host's."""

    def forward(self: Any, data: dict[str, Any]) -> dict[str, Any]:
        """``data`` with the harmonics of the edges and the weights of the tensor features."""
        x = data[self.scalar_embedding_in_field]
        if not is_cpp(x):
            return super().forward(data)  # type: ignore[misc]
        from nequip.nn import with_edge_vectors_

        data = with_edge_vectors_(data, with_lengths=False)
        harmonics = self.sh(data["edge_vectors"]).to(self._output_dtype)
        irreps = channels.irreps_of(self._edge_weighter)
        data[self.tensor_basis_out_field] = harmonics
        _, data[layers.FACTORS] = mlps.with_weights(self.env_embed_linear, x, 0, irreps)
        return data


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    return derive(FastTensorEmbed, old)


def judge(module: Any, model: torch.nn.Module) -> str:
    """Why one cannot be swapped; empty where it can."""
    missing = [name for name in HOST_ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"an unknown version of Allegro's class, without {', '.join(missing)}"
    if not any(_reads(reader, module) for reader in model.modules()):
        return "no Allegro_Module that fastmlip knows reads what it makes"
    return channels.unsupported_weighter(module._edge_weighter) or mlps.unsupported(
        module.env_embed_linear, "projection"
    )


def _reads(module: Any, embed: Any) -> bool:
    known = isinstance(module, layers.FastAllegro) or (
        type(module).__name__ == "Allegro_Module" and not layers.unsupported(module)
    )
    return (
        known
        and module.tensor_features_in_field == embed.tensor_embedding_out_field
        and module.tensor_basis_in_field == embed.tensor_basis_out_field
    )
