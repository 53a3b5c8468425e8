"""The table of cases: a file for each operator, a row for each case."""

from fastmlip.testing.cases import tensor_product_conv, zbl
from fastmlip.testing.cases.operator import Operator

OPERATORS: dict[str, Operator] = {
    "tensor_product_conv": tensor_product_conv.OPERATOR,
    "zbl": zbl.OPERATOR,
}
