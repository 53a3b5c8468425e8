"""The table of cases: a file for each operator, a row for each case."""

from fastmlip.testing.cases import (
    contraction,
    edge_embedding,
    edge_vectors,
    env_sum,
    gate,
    irreps_linear,
    pair_linear,
    radial_conv,
    scalar_mlp,
    scale_shift,
    spline,
    symmetric_contraction,
    tensor_product_conv,
    zbl,
)
from fastmlip.testing.cases.operator import Operator

OPERATORS: dict[str, Operator] = {
    "contraction": contraction.OPERATOR,
    "edge_embedding": edge_embedding.OPERATOR,
    "edge_vectors": edge_vectors.OPERATOR,
    "env_sum": env_sum.OPERATOR,
    "gate": gate.OPERATOR,
    "irreps_linear": irreps_linear.OPERATOR,
    "pair_linear": pair_linear.OPERATOR,
    "radial_conv": radial_conv.OPERATOR,
    "scalar_mlp": scalar_mlp.OPERATOR,
    "scale_shift": scale_shift.OPERATOR,
    "spline": spline.OPERATOR,
    "symmetric_contraction": symmetric_contraction.OPERATOR,
    "tensor_product_conv": tensor_product_conv.OPERATOR,
    "zbl": zbl.OPERATOR,
}
