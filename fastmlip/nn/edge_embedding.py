"""Modules of :mod:`fastmlip.ops.edge_embedding`, which states the formulas."""

from __future__ import annotations

import torch

from fastmlip import ops
from fastmlip.ops.edge_embedding import EdgeEmbedding as Fields
from fastmlip.spherical_harmonics import tables


class EdgeEmbedding(torch.nn.Module):
    """Edge vectors to lengths, spherical harmonics, and Bessel functions with a smooth cutoff.

    Args:
        r_max: cutoff radius; or one for each pair of types, ``[T][T]`` by centre and neighbour.
        l_max: highest degree of the spherical harmonics, up to 11; -1 for none.
        num_bessels: number of radial functions, may be 0.
        p: power of the polynomial cutoff, an integer from 2 to 1000.
        factor: number that multiplies the radial functions; NequIP has 2 pi / r_max^2.
        trainable: whether the Bessel roots (``bessel_weights``) are parameters.
        normalization: ``component``, ``integral`` or ``norm``, as in e3nn.
        dtype: of harmonics, radial functions and cutoff; the default dtype where not given.

    Raises:
        ValueError: naming the argument.

    Example:
        >>> embed = fastmlip.nn.EdgeEmbedding(r_max=5.0, l_max=2)
        >>> out = embed(edge_vec)  # [E, 3]
        >>> out.attrs.shape, out.embedding.shape
        ([E, 9], [E, 8])
    """

    rmax_recip: torch.Tensor
    bessel_weights: torch.Tensor
    tables: torch.Tensor

    def __init__(
        self,
        r_max: float | list[list[float]],
        l_max: int,
        num_bessels: int = 8,
        p: int = 6,
        factor: float = 1.0,
        trainable: bool = False,
        normalization: str = "component",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.l_max, self.num_bessels, self.p, self.factor = l_max, num_bessels, p, factor
        self.normalization, self.trainable = normalization, trainable
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        radii = torch.as_tensor(r_max, dtype=torch.float64)
        if radii.dim() not in (0, 2) or (radii.dim() == 2 and radii.shape[0] != radii.shape[1]):
            raise ValueError(f"r_max: expected a number or [T][T] of them, got {r_max}")
        if not (radii > 0).all():
            raise ValueError(f"r_max: expected positive numbers, got {r_max}")
        self.per_edge_type = radii.dim() == 2
        self.register_buffer("rmax_recip", radii.reciprocal().reshape(-1))
        roots = torch.arange(1, num_bessels + 1, dtype=torch.float64)
        if trainable:
            self.bessel_weights = torch.nn.Parameter(roots)
        else:
            self.register_buffer("bessel_weights", roots)
        self.register_buffer("tables", tables(l_max, normalization), persistent=False)

    def forward(self, edge_vec: torch.Tensor, edge_type: torch.Tensor | None = None) -> Fields:
        """``length``, ``norm``, ``attrs``, ``embedding``, ``cutoff`` of the edges.

        Args:
            edge_vec: ``[E, 3]``.
            edge_type: types of centre and neighbour, ``[2, E]``, where r_max depends on them.
        """
        return ops.edge_embedding(
            edge_vec,
            self.bessel_weights.double(),
            self.rmax_recip.double(),
            edge_type if self.per_edge_type else None,
            l_max=self.l_max,
            p=self.p,
            factor=self.factor,
            dtype=self.dtype,
            tables=self.tables,
        )

    def extra_repr(self) -> str:
        return (
            f"l_max={self.l_max}, num_bessels={self.num_bessels}, p={self.p}, "
            f"trainable={self.trainable}"
        )


class SphericalHarmonics(torch.nn.Module):
    """Real spherical harmonics of the directions of vectors, degrees 0 to ``l_max``.

    The same numbers as ``e3nn.o3.SphericalHarmonics(range(l_max + 1), normalize=True)``; computed
    in float64 and rounded to the dtype of the vectors. A vector of length 0 has direction 0.

    Args:
        l_max: highest degree, up to 11.
        normalization: ``component``, ``integral`` or ``norm``, as in e3nn.
    """

    tables: torch.Tensor
    no_roots: torch.Tensor
    one: torch.Tensor

    def __init__(self, l_max: int, normalization: str = "component") -> None:
        super().__init__()
        self.l_max, self.normalization = l_max, normalization
        self.register_buffer("tables", tables(l_max, normalization), persistent=False)
        self.register_buffer("no_roots", torch.empty(0, dtype=torch.float64), persistent=False)
        self.register_buffer("one", torch.ones(1, dtype=torch.float64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., (l_max + 1)^2]`` of vectors ``[..., 3]``."""
        out = ops.edge_embedding(
            x.reshape(-1, 3),
            self.no_roots.double(),
            self.one.double(),
            l_max=self.l_max,
            dtype=x.dtype,
            tables=self.tables,
        )
        return out.attrs.reshape(*x.shape[:-1], (self.l_max + 1) ** 2)

    def extra_repr(self) -> str:
        return f"l_max={self.l_max}, normalization={self.normalization}"
