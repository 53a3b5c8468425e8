"""Bad calls: each is refused with the argument, what came and what was expected; none crashes."""

import pytest
import torch

from fastmlip import nn, ops, use_backend
from fastmlip.ops.edge_order import EdgeOrder
from fastmlip.testing import OPERATORS, make_inputs

OP = OPERATORS["tensor_product_conv"]
CASE = OP.cases["path-weights"]  # 6x0e+6x1o x 0e+1o, 18 weights; 3 nodes and 56 edges by default
GOOD = make_inputs(CASE, torch.float32)._asdict()

BAD = {
    "x columns": ({"x": GOOD["x"][:, 1:]}, ValueError, r"x: .*irreps_in1.*24 columns.*\(3, 23\)"),
    "x rank": ({"x": GOOD["x"][0]}, ValueError, r"x: expected shape \[N, irreps_in1.dim\]"),
    "x batched": ({"x": GOOD["x"][None]}, ValueError, r"x: expected shape"),
    "edge_attr columns": (
        {"edge_attr": GOOD["edge_attr"][:, :3]},
        ValueError,
        "edge_attr: .*4 col",
    ),
    "edge_weight columns": ({"edge_weight": GOOD["x"]}, ValueError, "edge_weight: .*18 columns"),
    "shared weights": ({"edge_weight": GOOD["edge_weight"][0]}, ValueError, "edge_weight: exp"),
    "edge_attr rows": ({"edge_attr": GOOD["edge_attr"][1:]}, ValueError, "edge_attr: .*E = 56.*55"),
    "edge_weight rows": ({"edge_weight": GOOD["edge_weight"][1:]}, ValueError, "edge_weight: .*55"),
    "edge_src length": ({"edge_src": GOOD["edge_src"][1:]}, ValueError, "edge_src: .*E = 56.*55"),
    "edge_dst rank": (
        {"edge_dst": GOOD["edge_dst"][None]},
        ValueError,
        r"edge_dst: .*\[E\].*1, 56",
    ),
    "edge_src rank": ({"edge_src": GOOD["edge_src"][None]}, ValueError, r"edge_src: .*\[E\]"),
    "integer x": ({"x": GOOD["x"].long()}, TypeError, "x: expected a floating dtype.*int64"),
    "integer weight": (
        {"edge_weight": GOOD["edge_weight"].int()},
        TypeError,
        "edge_weight: .*int32",
    ),
    "float index": (
        {"edge_dst": GOOD["edge_dst"].float()},
        TypeError,
        "edge_dst: .*int64.*float32",
    ),
    "int16 index": ({"edge_src": GOOD["edge_src"].short()}, TypeError, "edge_src: .*int16"),
    "bool index": ({"edge_src": GOOD["edge_src"].bool()}, TypeError, "edge_src: .*bool"),
    "mixed indices": ({"edge_src": GOOD["edge_src"].int()}, TypeError, "edge_src: .*int64.*int32"),
    "float64 x": ({"x": GOOD["x"].double()}, TypeError, "edge_attr: expected torch.float64"),
    "float64 weight": (
        {"edge_weight": GOOD["edge_weight"].double()},
        TypeError,
        "edge_weight: exp",
    ),
    "half": (
        {"x": GOOD["x"].half()},
        TypeError,
        "x: expected float32 or float64, got torch.float16",
    ),
    "complex x": ({"x": GOOD["x"] + 0j}, TypeError, "x: expected a floating dtype"),
    "edge_attr elsewhere": (
        {"edge_attr": GOOD["edge_attr"].to("meta")},
        ValueError,
        "edge_attr: expected device cpu as x has, got meta",
    ),
    "edge_src elsewhere": (
        {"edge_src": GOOD["edge_src"].to("meta")},
        ValueError,
        "edge_src: expected device cpu as x has, got meta",
    ),
    "other device": ({"x": GOOD["x"].to("meta")}, ValueError, "edge_attr: expected device meta"),
}


@pytest.mark.parametrize("as_module", [False, True], ids=["function", "module"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_refused(name, as_module):
    changes, error, message = BAD[name]
    module = nn.TensorProductConv.from_problem(CASE.problem)
    with pytest.raises(error, match=message):
        if as_module:
            module(**(GOOD | changes))
        else:
            ops.tensor_product_conv(**(GOOD | changes), problem=CASE.problem)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("bad", [-1, 3, 2**31 - 1])
@pytest.mark.parametrize("argument", ["edge_dst", "edge_src"])
def test_an_index_out_of_range_is_refused_before_any_memory_is_read(argument, bad, dtype, backend):
    inputs = make_inputs(CASE, torch.float32, index_dtype=dtype)._asdict()
    inputs[argument][7] = bad
    where = rf"{argument}\[7\] = {bad} .*0 <= value < 3" if backend == "cpp" else argument
    with use_backend(backend), pytest.raises(RuntimeError, match=where):
        ops.tensor_product_conv(**inputs, problem=CASE.problem)


def test_edges_without_nodes_are_out_of_range():
    inputs = make_inputs(CASE, torch.float32, nodes=0, edges=2)
    with pytest.raises(RuntimeError, match=r"edge_dst\[0\] = 0 .*value < 0"):
        ops.tensor_product_conv(*inputs, CASE.problem)


def test_a_product_without_paths_is_zero():
    module = nn.TensorProductConv("4x0e", "0e", "2x0e", [])
    x, a, w = (torch.randn(3, n, requires_grad=True) for n in (4, 1, 0))
    index = torch.tensor([0, 1, 1])
    out = module(x, a, w, index, index)
    assert torch.equal(out, torch.zeros(3, 2))
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.zeros(3, 4))


# ---------------------------------------------------------------- the raw operators, called wrongly


def _raw(changes):
    tables = CASE.problem.tables()
    order = torch.ops.fastmlip.edge_order_cpu(GOOD["edge_dst"], GOOD["edge_src"], 3)
    operands = {"x": GOOD["x"], "a": GOOD["edge_attr"], "w": GOOD["edge_weight"]}
    operands |= {"order": order, "tables": tables} | changes
    return operands


RAW_BAD = {
    "an order of other edges": {"order": torch.zeros(11, dtype=torch.int64)},
    "an order in int32": {"order": torch.zeros(EdgeOrder.size(3, 56), dtype=torch.int32)},
    "x of another width": {"x": torch.zeros(3, 5)},
    "edge_attr of another width": {"a": torch.zeros(56, 1)},
    "edge_weight of another width": {"w": torch.zeros(56, 1)},
    "fewer weights than edges": {"w": torch.zeros(1, 18)},
    "a half among floats": {"x": torch.zeros(3, 24).half()},
    "a double among floats": {"w": torch.zeros(56, 18, dtype=torch.float64)},
    "tables cut short": {"tables": torch.zeros(3, dtype=torch.int64)},
    "tables in float": {"tables": torch.zeros(200)},
}


@pytest.mark.parametrize("name", RAW_BAD)
def test_the_raw_operator_checks_what_it_would_read(name):
    """No Python check stands before it in an AOTInductor package."""
    with pytest.raises(RuntimeError):
        torch.ops.fastmlip.tensor_product_conv_cpu(
            *_raw(RAW_BAD[name]).values(), CASE.problem.dim_out
        )
