"""Operators: one page each, with formula, reference, registration and derivatives."""

from fastmlip.ops.tensor_product_conv import tensor_product_conv

__all__ = ["tensor_product_conv"]
