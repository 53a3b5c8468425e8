"""Tables in the place of all that depends on the distance and the two types alone: Allegro's scalar
embedding, its MLP, the weights of the tensor features, and the projection that begins the layers.

One module makes what :class:`~fastmlip.integrations.allegro.layers.FastAllegro` reads; those it
stands for are gone from the model. Every ordered pair of types that is in use has a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastmlip import ops
from fastmlip.integrations import refine
from fastmlip.integrations.allegro import channels, layers
from fastmlip.integrations.nequip import edges
from fastmlip.integrations.nequip.edge_embedding import ComputedAtEnd
from fastmlip.nn.radial_spline import RadialSpline


class InTable(ComputedAtEnd):
    """Takes the place of a module whose result the tables hold."""


class TabulatedEmbed(InTable):
    """Takes the place of a ``TwoBodySphericalHarmonicTensorEmbed``.

    Args:
        embed: that module, whose harmonics stay.
        norm: the ``EdgeLengthNormalizer`` in front.
        host: the layers behind it.
        pairs: ``(type of the centre, type of the neighbour)`` of each table.
        num_types: of the model.
    """

    sh: torch.nn.Module
    kinds: torch.Tensor  # [num_types ** 2]: the table of a pair, or -1
    numbers: torch.Tensor  # [num_types]
    _rmax_recip: torch.Tensor
    tensor_embedding_out_field: str
    tensor_basis_out_field: str
    splines: torch.nn.ModuleList  # of the scalars, the first environment, the tensor features
    table_metadata: dict[str, str]

    def __init__(
        self, embed: Any, norm: Any, host: Any, pairs: Sequence[tuple[int, int]], num_types: int
    ) -> None:
        super().__init__(embed)
        self.irreps = channels.irreps_of(embed._edge_weighter)
        self.env_irreps = channels.irreps_of(host._env_weighter)
        self.sh, self.num_types = embed.sh, num_types
        self._output_dtype = embed._output_dtype
        self.norm_length_field = norm.norm_length_field
        self._per_edge_type = norm._per_edge_type
        self.register_buffer("_rmax_recip", norm._rmax_recip.double(), persistent=False)
        kinds = torch.full((num_types**2,), -1)
        for kind, (centre, neighbour) in enumerate(pairs):
            kinds[centre * num_types + neighbour] = kind
        self.register_buffer("kinds", kinds, persistent=False)
        self.register_buffer("numbers", torch.arange(num_types), persistent=False)
        self.splines = torch.nn.ModuleList()
        self.table_metadata = {}

    def _get_metadata_contributions(self) -> dict[str, str]:
        return self.table_metadata

    @property
    def remark(self) -> str:
        """For the summary."""
        return refine.remark(self.table_metadata)

    def put(self, coefficients: torch.Tensor, widths: Sequence[int]) -> None:
        """Tables of ``coefficients [pairs, intervals + 5, sum of widths]``."""
        device, dtype = self.kinds.device, self._output_dtype
        parts = coefficients.to(device, dtype).split(list(widths), 2)
        self.splines = torch.nn.ModuleList(RadialSpline(part.contiguous()) for part in parts)

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        """``data`` with the harmonics of the edges and what the tables give."""
        data = edges.with_vectors(data)
        vectors = data["edge_vectors"]
        # an index out of range is an error, not the number of another pair
        types = self.numbers.index_select(0, data["atom_types"].reshape(-1))
        centre, neighbour = (types.index_select(0, ends) for ends in data["edge_index"])
        pair = centre * self.num_types + neighbour
        recip = self._rmax_recip
        if self._per_edge_type:
            recip = recip.index_select(0, pair).unsqueeze(1)
        length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        data["edge_lengths"] = length.squeeze(1)
        data[self.norm_length_field] = norm_length = length * recip
        harmonics = self.sh(vectors).to(self._output_dtype)
        data[self.tensor_basis_out_field] = harmonics
        data[layers.HARMONICS] = harmonics.clone()  # who changes the field, changes not this
        data.pop(self.tensor_embedding_out_field, None)  # of an earlier call
        splines: list[Any] = list(self.splines)
        place, first_row = splines[0](norm_length, self.kinds.index_select(0, pair))
        scalars, env, features = (
            ops.spline(place, first_row, spline.table, spline.columns) for spline in splines
        )
        data[layers.SCALARS] = scalars
        data[layers.ENV_WEIGHTS] = env.unflatten(1, (self.env_irreps, -1))
        data[layers.WEIGHTS] = features.unflatten(1, (self.irreps, -1))
        return data

    def extra_repr(self) -> str:
        return f"{int((self.kinds >= 0).sum())} pairs of types"
