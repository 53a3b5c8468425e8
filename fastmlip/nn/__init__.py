"""Modules: drop-in replacements for those of the host packages."""

from fastmlip.nn.scale_shift import PerTypeScaleShift
from fastmlip.nn.tensor_product_conv import TensorProductConv
from fastmlip.nn.zbl import ZBL

__all__ = ["PerTypeScaleShift", "TensorProductConv", "ZBL"]
