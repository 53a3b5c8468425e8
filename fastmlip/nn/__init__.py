"""Modules: drop-in replacements for those of the host packages."""

from fastmlip.nn.edge_embedding import EdgeEmbedding, SphericalHarmonics
from fastmlip.nn.tensor_product_conv import TensorProductConv

__all__ = ["EdgeEmbedding", "SphericalHarmonics", "TensorProductConv"]
