"""The table of cases: a file for each operator, a row for each case."""

from fastmlip.testing.cases import edge_embedding, tensor_product_conv
from fastmlip.testing.cases.operator import Operator

OPERATORS: dict[str, Operator] = {
    "edge_embedding": edge_embedding.OPERATOR,
    "tensor_product_conv": tensor_product_conv.OPERATOR,
}
