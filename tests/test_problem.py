"""The description of a tensor product: e3nn's normalisation, tables, round trips, errors."""

import pickle
from functools import partial
from typing import NamedTuple

import pytest
import torch
from e3nn.o3 import Irreps, wigner_3j

from fastmlip import ops, problem, spherical_harmonics
from fastmlip.ops import gate, irreps_linear
from fastmlip.ops.gate import Segment
from fastmlip.ops.gate import reference as gate_reference
from fastmlip.ops.irreps_linear import LinearProblem
from fastmlip.ops.irreps_linear import reference as linear_reference
from fastmlip.problem import L_MAX, PATH_FIELDS, TensorProductProblem
from fastmlip.testing import NEQUIP_PRESETS, OPERATORS, assert_same_derivatives, poison_empty

CASES = OPERATORS["tensor_product_conv"].cases
GOOD = {"irreps_in1": "4x0e+4x1o", "irreps_in2": "0e+1o", "irreps_out": "4x0e+4x1o"}
PATH = (0, 0, 0, "uvu", True)


@pytest.mark.parametrize("name", CASES)
def test_coefficients_and_sizes_are_those_of_e3nn(name):
    case, product = CASES[name], CASES[name].e3nn()
    theirs = TensorProductProblem.from_e3nn(product)
    assert case.problem.weight_numel == product.weight_numel
    assert case.problem.dim_out == product.irreps_out.dim
    assert [row[:3] for row in case.problem.instructions] == [
        row[:3] for row in theirs.instructions
    ]
    mine, e3nns = ([row[3] for row in p.instructions] for p in (case.problem, theirs))
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(e3nns), rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_a_problem_survives_its_key_and_pickle(name):
    problem = CASES[name].problem
    for copy in (TensorProductProblem.from_key(problem.key), pickle.loads(pickle.dumps(problem))):
        assert copy == problem
        assert hash(copy) == hash(problem)
        assert torch.equal(copy.tables(), problem.tables())


@pytest.mark.parametrize("name", ["nequip-M-hidden", "shared-output", "unused-blocks", "high-l"])
def test_tables_spell_out_the_problem(name):
    """Decoded by the layout that the docstring of ``tables`` states, for e3nn's symbols."""
    problem = CASES[name].problem
    table = problem.tables().tolist()
    blocks1, dim2, blocks3, paths, triples, weights, _ = header = table[:7]
    assert (dim2, paths, weights) == (problem.dim_in2, len(problem.paths), problem.weight_numel)
    sizes = torch.tensor(table[len(header) :][: 2 * (blocks1 + blocks3)]).reshape(-1, 2).prod(1)
    assert sizes[:blocks1].sum() == problem.dim_in1
    assert sizes[blocks1:].sum() == problem.dim_out
    rows = table[len(header) + 2 * (blocks1 + blocks3) :][: len(PATH_FIELDS) * paths]
    cg = torch.tensor(table[len(table) - 4 * triples :]).reshape(-1, 4)
    values = cg[:, 3].contiguous().view(torch.float64)
    for number, path in enumerate(problem.paths):
        row = dict(zip(PATH_FIELDS, rows[number * len(PATH_FIELDS) :], strict=False))
        assert (row["mul"], row["d1"], row["d2"], row["d3"]) == (
            path.mul,
            path.d1,
            path.d2,
            path.d3,
        )
        mine = slice(row["cg_begin"], row["cg_end"])
        dense = torch.zeros(path.d1, path.d2, path.d3, dtype=torch.float64)
        dense[tuple(cg[mine, :3].T)] = values[mine]
        symbols = wigner_3j(path.l1, path.l2, path.l3, dtype=torch.float64)
        torch.testing.assert_close(dense, path.path_weight * symbols, rtol=0, atol=1e-12)


def test_nequip_rows_are_those_of_the_installed_presets():
    models = pytest.importorskip("nequip.model.nequip_models")
    theirs = {k: tuple(v["num_features"]) for k, v in models._NEQUIP_GNN_PRESETS.items()}
    assert theirs == NEQUIP_PRESETS
    assert models._NEQUIP_GNN_STANDARD_PRESET["parity"] is False
    assert models._NEQUIP_GNN_STANDARD_PRESET["type_embed_num_features"] == 32


def test_nequip_rows_are_the_products_that_nequip_builds():
    layers = pytest.importorskip("nequip.nn")
    irreps = {
        "edge_embedding": "8x0e", "node_attrs": "32x0e", "node_features": "32x0e",
        "edge_attrs": "1x0e+1x1o+1x2e",
    }  # fmt: skip
    irreps = {key: Irreps(value) for key, value in irreps.items()}
    hidden = "128x0e+64x1o+32x2e"
    for row, features in (("first", hidden), ("hidden", hidden), ("last", "128x0e")):
        layer = layers.ConvNetLayer(irreps, features, convolution_kwargs={"avg_num_neighbors": 9.0})
        irreps = layer.irreps_out
        built = TensorProductProblem.from_e3nn(layer.conv.tp_scatter.tp)
        assert built == CASES[f"nequip-M-{row}"].problem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instructions": [(0, 0, 0)]}, r"instructions\[0\]: expected \(i_in1"),
        ({"instructions": [PATH, (*PATH[:3], "uvw", True)]}, r"instructions\[1\].*'uvw'.*'uvu'"),
        ({"instructions": [(*PATH[:4], False)]}, "has_weight=False"),
        ({"instructions": [(2, 0, 0, "uvu", True)]}, "i_in1=2 is outside the 2 blocks"),
        ({"instructions": [(0, -1, 0, "uvu", True)]}, "i_in2=-1 is outside"),
        ({"instructions": [(0, 0, 9, "uvu", True)]}, "i_out=9 is outside"),
        ({"instructions": [PATH], "irreps_in2": "2x0e"}, r"irreps_in2\[0\] is 2x0e.*must be 1"),
        ({"instructions": [PATH], "irreps_out": "5x0e"}, "equal multiplicities, got 4x0e"),
        ({"instructions": [(0, 0, 1, "uvu", True)]}, "0e x 0e does not contain 1o"),
        ({"instructions": [(1, 1, 1, "uvu", True)]}, "1o x 1o does not contain 1o"),
        ({"instructions": [(*PATH, -1.0)]}, "path_weight must be finite and >= 0, got -1.0"),
        ({"instructions": [(*PATH, float("nan"))]}, "path_weight must be finite"),
        ({"instructions": [(*PATH, float("inf"))]}, "path_weight must be finite"),
        ({"instructions": [PATH], "irrep_normalization": "comp"}, "irrep_normalization: .*'comp'"),
        ({"instructions": [PATH], "path_normalization": "x"}, "path_normalization: .*'x'"),
        (
            {"instructions": [PATH], "irreps_in1": "4x0e+8x12e"},
            r"irreps_in1: expected irreps up to l = 11, got 4x0e\+8x12e",
        ),
        ({"instructions": [PATH], "irreps_in2": "0e+12e"}, "irreps_in2: expected .*l = 11, got"),
        ({"instructions": [PATH], "irreps_out": "4x0e+13o"}, "irreps_out: expected .*l = 11, got"),
    ],
)
def test_a_bad_description_is_refused_with_its_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        TensorProductProblem.from_instructions(**(GOOD | changes))


# ---------------------------------------------------------------- the largest l


def of_degree(degree, in2):
    irreps = f"3x{degree}e"
    return TensorProductProblem.from_instructions(irreps, in2, irreps, [(0, 0, 0, "uvu", True)])


class Row(NamedTuple):
    """What make_inputs reads of a case."""

    problem: TensorProductProblem


@pytest.mark.parametrize("in2", ["0e", "1e", f"{L_MAX}e"])
def test_the_largest_l_is_computed_right(in2):
    described, operator = of_degree(L_MAX, in2), OPERATORS["tensor_product_conv"]
    inputs = operator.make_inputs(Row(described), torch.float32, edges=9)
    with poison_empty():
        assert_same_derivatives(
            *(partial(f, problem=described) for f in (operator.op, operator.reference)), inputs, 2
        )


def test_cpp_has_the_same_largest_l(monkeypatch):
    """It has room for no larger ones, whatever a table says."""
    for module in (problem, spherical_harmonics):
        monkeypatch.setattr(module, "L_MAX", L_MAX + 1)
    larger = of_degree(L_MAX + 1, "0e")
    index = torch.zeros(2, dtype=torch.int64)
    x, a, w = torch.ones(1, larger.dim_in1), torch.ones(2, 1), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match=f"tables: .*expected l up to {L_MAX}"):
        ops.tensor_product_conv(x, a, w, index, index, larger)
    one, table = torch.ones(1).double(), spherical_harmonics.tables(L_MAX + 1)
    with pytest.raises(RuntimeError, match=f"l_max: expected -1 to {L_MAX}, got {L_MAX + 1}"):
        torch.ops.fastmlip.edge_embedding_cpu(
            torch.ones(4, 3).double(), one, one, None, table, L_MAX + 1, 6, 1.0, False
        )


class Operands(NamedTuple):
    x: torch.Tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_maps_and_gates_take_any_l(dtype):
    """Their kernels hold no irrep in registers."""
    linear = LinearProblem("9x12e+2x20o", "5x12e+3x20o", ((0, 0), (1, 1)))
    weight = torch.randn(1, linear.weight_numel, dtype=torch.float64)
    segments = (Segment(0, 9, 0, 9, 25, "silu", 1.7),)
    for operator, reference, columns in (
        (lambda x: irreps_linear(x, weight.to(x.dtype), linear),
         lambda x: linear_reference(x, weight.to(x.dtype), linear), linear.dim_in),
        (partial(gate, segments=segments), partial(gate_reference, segments=segments), 9 * 26),
    ):  # fmt: skip
        inputs = Operands(torch.randn(4, columns, dtype=dtype))
        with poison_empty():
            assert_same_derivatives(operator, reference, inputs, 2)
