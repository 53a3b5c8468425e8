"""The table of cases: a file for each operator, a row for each case."""

from fastmlip.testing.cases import (
    edge_embedding,
    edge_vectors,
    gate,
    irreps_linear,
    pair_linear,
    radial_conv,
    scale_shift,
    tensor_product_conv,
    zbl,
)
from fastmlip.testing.cases.operator import Operator

OPERATORS: dict[str, Operator] = {
    "edge_embedding": edge_embedding.OPERATOR,
    "edge_vectors": edge_vectors.OPERATOR,
    "gate": gate.OPERATOR,
    "irreps_linear": irreps_linear.OPERATOR,
    "pair_linear": pair_linear.OPERATOR,
    "radial_conv": radial_conv.OPERATOR,
    "scale_shift": scale_shift.OPERATOR,
    "tensor_product_conv": tensor_product_conv.OPERATOR,
    "zbl": zbl.OPERATOR,
}
