"""Modules: drop-in replacements for those of the host packages."""

from fastmlip.nn.contraction import Contraction
from fastmlip.nn.edge_embedding import EdgeEmbedding, SphericalHarmonics
from fastmlip.nn.env_sum import EnvSum
from fastmlip.nn.gate import Gate
from fastmlip.nn.irreps_linear import IrrepsLinear
from fastmlip.nn.scalar_mlp import ScalarMLP
from fastmlip.nn.scale_shift import PerTypeScaleShift
from fastmlip.nn.symmetric_contraction import SymmetricContraction
from fastmlip.nn.tensor_product_conv import TensorProductConv
from fastmlip.nn.zbl import ZBL

__all__ = [
    "Contraction", "EdgeEmbedding", "EnvSum", "Gate", "IrrepsLinear", "PerTypeScaleShift",
    "ScalarMLP", "SphericalHarmonics", "SymmetricContraction", "TensorProductConv", "ZBL",
]  # fmt: skip
