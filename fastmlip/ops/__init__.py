"""Operators: one page each, with formula, reference, registration and derivatives."""

from fastmlip.ops.contraction import contraction
from fastmlip.ops.edge_embedding import edge_embedding
from fastmlip.ops.edge_order import edge_order
from fastmlip.ops.edge_pair import edge_pair
from fastmlip.ops.edge_vectors import edge_vectors
from fastmlip.ops.env_sum import env_sum
from fastmlip.ops.gate import gate
from fastmlip.ops.ghost_exchange import ghost_exchange
from fastmlip.ops.irreps_linear import irreps_linear
from fastmlip.ops.pair_linear import pair_linear
from fastmlip.ops.radial_conv import radial_conv
from fastmlip.ops.scalar_mlp import scalar_mlp
from fastmlip.ops.scale_shift import scale_shift
from fastmlip.ops.spline import spline
from fastmlip.ops.symmetric_contraction import symmetric_contraction
from fastmlip.ops.tensor_product_conv import tensor_product_conv
from fastmlip.ops.zbl import zbl

__all__ = [
    "contraction", "edge_embedding", "edge_order", "edge_pair", "edge_vectors", "env_sum", "gate",
    "ghost_exchange", "irreps_linear", "pair_linear", "radial_conv", "scalar_mlp", "scale_shift",
    "spline", "symmetric_contraction", "tensor_product_conv", "zbl",
]  # fmt: skip
