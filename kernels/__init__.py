"""Triton kernels; one file per operator, the same stem as in fastmlip/ops."""
