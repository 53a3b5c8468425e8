"""Operators: one page each, with formula, reference, registration and derivatives."""

from fastmlip.ops.edge_embedding import edge_embedding
from fastmlip.ops.edge_order import edge_order
from fastmlip.ops.edge_pair import edge_pair
from fastmlip.ops.edge_vectors import edge_vectors
from fastmlip.ops.gate import gate
from fastmlip.ops.irreps_linear import irreps_linear
from fastmlip.ops.pair_linear import pair_linear
from fastmlip.ops.radial_conv import radial_conv
from fastmlip.ops.scale_shift import scale_shift
from fastmlip.ops.tensor_product_conv import tensor_product_conv
from fastmlip.ops.zbl import zbl

__all__ = [
    "edge_embedding", "edge_order", "edge_pair", "edge_vectors", "gate", "irreps_linear",
    "pair_linear", "radial_conv", "scale_shift", "tensor_product_conv", "zbl",
]  # fmt: skip
