"""Irreps that users run, and irreps made to break kernels.

``OPERATORS["tensor_product_conv"].cases["nequip-L-hidden"]`` is one row; ``.problem`` describes it,
``.e3nn()`` is the same product as e3nn computes it, and :func:`make_inputs` draws its operands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from e3nn.o3 import Irreps, TensorProduct

from fastmlip.ops.tensor_product_conv import reference, tensor_product_conv
from fastmlip.problem import TensorProductProblem
from fastmlip.testing.cases.operator import Operator

# num_features of nequip.model.nequip_models._NEQUIP_GNN_PRESETS (parity False, 32 type features),
# nequip 0.19.1
NEQUIP_PRESETS = {
    "S": (128, 64),
    "M": (128, 64, 32),
    "L": (128, 64, 32, 32),
    "XL": (320, 96, 64, 32, 32),
}


@dataclass(frozen=True)
class Case:
    """One row: the arguments of ``e3nn.o3.TensorProduct``."""

    irreps_in1: str
    irreps_in2: str
    irreps_out: str
    instructions: tuple[tuple, ...]
    irrep_normalization: str = "component"
    path_normalization: str = "element"

    def arguments(self) -> tuple[str, str, str, list[tuple]]:
        """Positional arguments of ``e3nn.o3.TensorProduct`` and of ``nn.TensorProductConv``."""
        return (
            self.irreps_in1, self.irreps_in2, self.irreps_out, list(self.instructions)
        )  # fmt: skip

    @cached_property
    def problem(self) -> TensorProductProblem:
        return TensorProductProblem.from_instructions(
            *self.arguments(),
            irrep_normalization=self.irrep_normalization,
            path_normalization=self.path_normalization,
        )

    def e3nn(self) -> TensorProduct:
        """The independent truth for one edge, in the default dtype."""
        return TensorProduct(
            *self.arguments(),
            irrep_normalization=self.irrep_normalization,
            path_normalization=self.path_normalization,
            shared_weights=False,
            internal_weights=False,
        )


class Inputs(NamedTuple):
    """Operands in the order of the operator; ``edge_dst`` receives."""

    x: torch.Tensor
    edge_attr: torch.Tensor
    edge_weight: torch.Tensor
    edge_dst: torch.Tensor
    edge_src: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating operands in ``dtype``, indices as they are."""
        return Inputs(*(t.to(dtype) if t.is_floating_point() else t for t in self))


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float64,
    nodes: int = 3,
    edges: int = 56,
    seed: int = 0,
    sorted: bool = False,
    index_dtype: torch.dtype = torch.int64,
    device: str = "cpu",
) -> Inputs:
    """Standard normal operands on a random graph, which has self-edges and double edges.

    With ``sorted`` edges come in the order of their receivers, as neighbour lists give them. The
    same seed gives the same numbers for every dtype (up to rounding), order aside.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(device, dtype)

    edge_dst, edge_src = torch.randint(0, max(nodes, 1), (2, edges), generator=random)
    if sorted:
        edge_dst = edge_dst.sort().values
    return Inputs(
        normal(nodes, case.problem.dim_in1),
        normal(edges, case.problem.dim_in2),
        normal(edges, case.problem.weight_numel),
        edge_dst.to(device, index_dtype),
        edge_src.to(device, index_dtype),
    )


# ---------------------------------------------------------------- rows


def nequip_case(irreps_in1: str, irreps_in2: str, features_out: str, sorted: bool = False) -> Case:
    """The product of NequIP's InteractionBlock: all paths into ``features_out``, each into a block
    of its own, blocks in sorted order. Instructions keep the order of the inputs (NequIP) or, with
    ``sorted``, take that of the outputs (SevenNet, MACE)."""
    blocks: list[tuple] = []
    instructions: list[tuple] = []
    for i, (mul, ir1) in enumerate(Irreps(irreps_in1)):
        for j, (_, ir2) in enumerate(Irreps(irreps_in2)):
            for ir3 in ir1 * ir2:
                if ir3 in Irreps(features_out):
                    instructions.append((i, j, len(blocks)))
                    blocks.append((mul, ir3))
    irreps_out, place, _ = Irreps(blocks).sort()
    instructions = [(i, j, place[k], "uvu", True) for i, j, k in instructions]
    if sorted:
        instructions.sort(key=lambda instruction: instruction[2])
    return Case(str(Irreps(irreps_in1)), str(irreps_in2), str(irreps_out), tuple(instructions))


def _features(multiplicities: tuple[int, ...], both_parities: bool = False) -> str:
    """NequIP's hidden irreps: ``128x0e+64x1o+...``, or ``128x0e+128x0o+64x1e+64x1o+...``."""
    blocks: list[str] = []
    for degree, mul in enumerate(multiplicities):
        parities = "eo" if both_parities else "eo"[degree % 2]
        blocks += [f"{mul}x{degree}{parity}" for parity in parities]
    return "+".join(blocks)


def _nequip_rows() -> dict[str, Case]:
    rows = {}
    for size, features in NEQUIP_PRESETS.items():
        edges = str(Irreps.spherical_harmonics(len(features) - 1))
        hidden, scalars = _features(features), f"{features[0]}x0e"
        rows[f"nequip-{size}-first"] = nequip_case("32x0e", edges, hidden)
        rows[f"nequip-{size}-hidden"] = nequip_case(hidden, edges, hidden)
        rows[f"nequip-{size}-last"] = nequip_case(hidden, edges, scalars)
    both = _features(NEQUIP_PRESETS["M"], both_parities=True)
    rows["nequip-M-parity"] = nequip_case(both, "1x0e+1x1o+1x2e", both)
    return rows


def _sevennet_rows() -> dict[str, Case]:
    """SevenNet-0: ``irreps_manual`` of sevenn/presets/sevennet-0.yaml in
    github.com/MDIL-SNU/SevenNet (channel 128, lmax 2, is_parity False: every parity is e)."""
    hidden, edges = "128x0e+64x1e+32x2e", "1x0e+1x1e+1x2e"
    return {
        "sevennet-0-first": nequip_case("128x0e", edges, hidden, sorted=True),
        "sevennet-0-hidden": nequip_case(hidden, edges, hidden, sorted=True),
        "sevennet-0-last": nequip_case(hidden, edges, "128x0e", sorted=True),
    }


def _mace_rows() -> dict[str, Case]:
    """The second layer of MACE-MP-0: num_channels 128, max_ell 3 and max_L 0, 1, 2 as in the
    scripts of mace_mp_0/ in github.com/ACEsuit/mace-mp; the paths go into 128 copies of every
    harmonic (``interaction_irreps`` in mace/modules/models.py of github.com/ACEsuit/mace). All
    first layers are ``mace-small``."""
    edges = "1x0e+1x1o+1x2e+1x3o"
    out = _features((128, 128, 128, 128))
    sizes = {"small": (128,), "medium": (128, 128), "large": (128, 128, 128)}
    return {
        f"mace-{size}": nequip_case(_features(features), edges, out, sorted=True)
        for size, features in sizes.items()
    }


def _allegro_rows() -> dict[str, Case]:
    """The irreps of Allegro-OAM-L: l_max 3, 64 tensor features, parity False
    (models/allegro/allegro-oam-l-0.1.yml in github.com/janosh/matbench-discovery).

    Allegro's own contraction has channels in both operands and weights that edges share, which is
    not this operator: these rows have its irreps and paths with one channel in the second."""
    features = _features((64, 64, 64, 64))
    edges = "1x0e+1x1o+1x2e+1x3o"
    return {
        "allegro-OAM-L-hidden": nequip_case(features, edges, features),
        "allegro-OAM-L-last": nequip_case(features, edges, "64x0e"),
    }


def _paths(*rows: tuple) -> tuple[tuple, ...]:
    """``(i, j, k[, path_weight])`` as e3nn's instructions."""
    return tuple((*row[:3], "uvu", True, *row[3:]) for row in rows)


_WEIGHTED = (
    "6x0e+6x1o",
    "0e+1o",
    "6x0e+6x1o",
    _paths((0, 0, 0, 0.25), (1, 1, 0, 3.0), (1, 0, 1, 2.0)),
)

TENSOR_PRODUCTS: dict[str, Case] = {
    **_nequip_rows(),
    **_sevennet_rows(),
    **_mace_rows(),
    **_allegro_rows(),
    "odd-multiplicities": nequip_case("5x0e+2x1o+7x2e", "0e+1o+2e", "5x0e+2x1o+7x2e"),
    "one-channel": nequip_case("1x0e+1x1o+1x2e", "0e+1o+2e", "1x0e+1x1o+1x2e"),
    # of every vector length: several vectors at a time, then single ones, then a part of one
    "uneven": nequip_case("61x0e+61x1o+61x2e", "0e+1o+2e", "61x0e+61x1o+61x2e"),
    "wide": nequip_case("320x0e+320x1o", "0e+1o", "320x0e+320x1o"),
    "high-l": nequip_case("3x0e+5x6e+2x3o", "0e+3o+6e", "1x0e+1x3o+1x6e+1x9o"),
    "pseudoscalars": nequip_case("9x0o+8x1e+3x0e", "0o+1o+0e", "1x0e+1x0o+1x1e+1x1o"),
    "shared-output": Case(
        "4x0e+4x1o+4x2e", "0e+1o+2e", "4x1o+4x0e",
        _paths((0, 1, 0), (1, 0, 0), (1, 2, 0), (2, 1, 0), (0, 0, 1), (1, 1, 1), (2, 2, 1)),
    ),
    "repeated-path": Case("3x1o", "1o", "3x1e", _paths((0, 0, 0), (0, 0, 0), (0, 0, 0))),
    "repeated-irreps": Case(
        "3x1o+4x0e+3x1o+4x0e", "1o+0e+1o", "4x0e+3x1o+4x1o+3x1o+3x0e",
        _paths((3, 1, 0), (2, 1, 3), (1, 2, 2), (0, 1, 1), (0, 0, 4), (2, 2, 4)),
    ),
    "unused-blocks": Case(
        "2x2e+4x1o+3x0e", "3x1o+0e+2e", "4x1o+6x0e+5x2e+4x1o", _paths((1, 1, 3))
    ),
    "path-weights": Case(*_WEIGHTED),
    "norm-none": Case(*_WEIGHTED, irrep_normalization="norm", path_normalization="none"),
    "none-path": Case(*_WEIGHTED, irrep_normalization="none", path_normalization="path"),
}  # fmt: skip

# CI runs a row of each model; these run with `make test-all` and in the benchmarks
SLOW = frozenset(
    (
        "nequip-L-first", "nequip-L-last", "nequip-XL-first", "nequip-XL-hidden", "nequip-XL-last",
        "sevennet-0-first", "sevennet-0-last", "mace-small", "mace-large", "allegro-OAM-L-hidden",
    )
)  # fmt: skip


def arguments(inputs: Inputs, case: Case) -> dict:
    """Keyword arguments of the operator."""
    return {**inputs._asdict(), "problem": case.problem}


OPERATOR = Operator(
    tensor_product_conv, reference, make_inputs, TENSOR_PRODUCTS, arguments,
    {"nodes": 37, "edges": 3300}, {"nodes": 3, "edges": 3},
    ("repeated-path",), SLOW,
)  # fmt: skip
