"""Operators: one page each, with formula, reference, registration and derivatives."""

from fastmlip.ops.edge_embedding import edge_embedding
from fastmlip.ops.tensor_product_conv import tensor_product_conv

__all__ = ["edge_embedding", "tensor_product_conv"]
