"""Operators: one page each, with formula, reference, registration and derivatives."""

from fastmlip.ops.tensor_product_conv import tensor_product_conv
from fastmlip.ops.zbl import zbl

__all__ = ["tensor_product_conv", "zbl"]
