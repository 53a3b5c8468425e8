"""Modules: drop-in replacements for those of the host packages."""

from fastmlip.nn.edge_embedding import EdgeEmbedding, SphericalHarmonics
from fastmlip.nn.gate import Gate
from fastmlip.nn.irreps_linear import IrrepsLinear
from fastmlip.nn.scale_shift import PerTypeScaleShift
from fastmlip.nn.tensor_product_conv import TensorProductConv
from fastmlip.nn.zbl import ZBL

__all__ = [
    "EdgeEmbedding", "Gate", "IrrepsLinear", "PerTypeScaleShift", "SphericalHarmonics",
    "TensorProductConv", "ZBL",
]  # fmt: skip
