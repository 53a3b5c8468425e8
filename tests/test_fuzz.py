"""Inputs drawn at random, for every operator of the table: the result agrees with the reference, or
an error names the argument; nothing crashes, and no bad number leaves its row."""

import importlib
import inspect
import re
from functools import partial

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS

from fastmlip import ops
from fastmlip.testing import OPERATORS, assert_close, assert_same_derivatives, poison_empty

FLOATS, INTEGERS = (torch.float32, torch.float64), (torch.int32, torch.int64)
DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool,
    torch.uint8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip
SLACK = {torch.float32: 20.0, torch.float64: 1e4}  # terms drawn at random may cancel
SIZES = {"nodes": 9, "edges": 40, "atoms": 40, "ghosts": 3}


def fuzz(quick, test):
    """``test(name, data)`` for every operator: ``quick`` fixed examples, or many new ones."""

    def run(name, examples, fixed):
        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=fixed,
            database=None,
            phases=(Phase.generate,),
        )
        @given(st.data())
        def search(data):
            test(name, data)

        search()

    parameters = [
        pytest.param(name, quick if fixed else 100, fixed, id=f"{name}-{'quick' if fixed else ''}",
                     marks=() if fixed else pytest.mark.slow)
        for name in OPERATORS for fixed in (True, False)
    ]  # fmt: skip
    return pytest.mark.parametrize(("name", "examples", "fixed"), parameters)(run)


def draw_inputs(name, data, few=0):
    """A case of an operator and inputs of any size, in any dtype."""
    table = OPERATORS[name]
    case = table.cases[data.draw(st.sampled_from(list(table.cases)), "case")]
    known = inspect.signature(table.make_inputs).parameters
    enough = getattr(getattr(case, "problem", None), "num_nodes", None) or few
    least = {"nodes": enough}
    sizes = {
        k: data.draw(st.integers(least.get(k, few), n), k) for k, n in SIZES.items() if k in known
    }
    if sizes.get("nodes") == 0 and "edges" in known:
        sizes["edges"] = 0
    for k, values in (
        ("index_dtype", INTEGERS),
        ("sorted", (True, False)),
        ("column", (True, False)),
    ):
        if k in known:
            sizes[k] = data.draw(st.sampled_from(values), k)
    dtype = data.draw(st.sampled_from(FLOATS), "dtype")
    return case, table.make_inputs(case, dtype, seed=data.draw(st.integers(0, 9), "seed"), **sizes)


def valid(name, data):
    case, inputs = draw_inputs(name, data)
    layouts = [data.draw(st.sampled_from((torch.clone, *LAYOUTS)), f) for f in inputs._fields]
    inputs = type(inputs)(*(layout(t) for layout, t in zip(layouts, inputs, strict=True)))
    table, problem = OPERATORS[name], getattr(case, "problem", case)
    op, reference = (partial(f, problem=problem) for f in (table.op, table.reference))
    with poison_empty():
        assert_same_derivatives(op, reference, inputs, order=2, slack=SLACK[inputs[0].dtype])


test_any_sizes_dtypes_and_strides_agree_with_the_reference = fuzz(10, valid)


# ---------------------------------------------------------------- numbers that are not finite


def leaves_of(arguments, dtype=None):
    return {
        name: t.detach().to(dtype or t.dtype).requires_grad_()
        for name, t in arguments.items()
        if isinstance(t, torch.Tensor) and t.is_floating_point()
    }


def as_list(output):
    return list(output) if isinstance(output, tuple) else [output]


def values_and_gradients(function, arguments, operands):
    """Outputs, and gradients of their sum in ``operands``; NaN and infinity pass through."""
    leaves = {name: arguments[name].detach().requires_grad_() for name in operands}
    out = as_list(function(**{**arguments, **leaves}))
    grads = torch.autograd.grad(
        [o for o in out if o.requires_grad],
        list(leaves.values()),
        [torch.ones_like(o) for o in out if o.requires_grad],
        materialize_grads=True,
    )
    return [o.detach() for o in out] + list(grads)


def reference_of(name):
    return importlib.import_module(f"fastmlip.ops.{name}").reference


def widened(arguments):
    """The same numbers in float64; lazy zeros in memory, for torch reads those of an index."""

    def wide_one(v):
        v = torch.zeros(v.shape, dtype=v.dtype) if v._is_zerotensor() else v
        return v.double() if v.is_floating_point() else v

    wide = {k: wide_one(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    return wide | ({"dtype": torch.float64} if "dtype" in wide else {})


def finite_rows(t):
    return t.isfinite().reshape(len(t), -1).all(1) if t.dim() else t.isfinite()


def not_finite(name, data):
    case, inputs = draw_inputs(name, data, few=1)
    table = OPERATORS[name]
    operands = [f for f, t in inputs._asdict().items() if t.is_floating_point() and t.numel()]
    if not operands:
        return
    operand = data.draw(st.sampled_from(operands), "operand")
    clean = table.arguments(inputs, case)
    operands = [f for f in operands if clean[f] is not None]
    if clean[operand] is None:
        return
    bad = getattr(inputs, operand).clone()
    row = data.draw(st.integers(0, len(bad) - 1), "row")
    bad[row] = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]), "number")
    dirty = table.arguments(inputs._replace(**{operand: bad}), case)
    function, truth = getattr(ops, name), reference_of(name)
    found, before = (values_and_gradients(function, a, operands) for a in (dirty, clean))
    wanted = values_and_gradients(truth, widened(dirty), operands)
    own = len(found) - len(operands) + operands.index(operand)
    for number, (got, want, was) in enumerate(zip(found, wanted, before, strict=True)):
        if not got.numel():
            continue
        here, there = finite_rows(got), finite_rows(want)
        if number == own:  # its own gradient, which torch.clamp makes 0
            here[row] = there[row] = here[row] and there[row]
        assert here[there].all(), f"{number}: a bad number reached a row that it does not touch"
        if not bad.isnan().any():
            there = there | here  # an infinite length has a limit
        assert torch.equal(here, there), f"{number}: a bad number vanished"
        close = there & finite_rows(was) & finite_rows(want)
        assert_close(got[close], want[close], 1, f"{name} {number}", SLACK[got.dtype])


test_a_number_that_is_not_finite_stays_in_its_rows = fuzz(20, not_finite)


# ---------------------------------------------------------------- bad calls


def changed(t, data):
    """A tensor that may not be what the operator takes: another shape, dtype, device or range."""
    kind = data.draw(st.sampled_from(CHANGES), "change")
    if kind == "dtype":
        return t.to(data.draw(st.sampled_from(DTYPES), "dtype"))
    if kind == "number":
        if not t.numel() or t.dtype is torch.bool:
            return t
        t = t.clone()
        at = data.draw(st.integers(0, t.numel() - 1), "at")
        integers = (-1, -(2**31), 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 3, 100)
        limits = torch.iinfo(t.dtype) if not t.is_floating_point() else None
        bad = data.draw(st.sampled_from(integers if limits else (-1, 0, 3, 100)), "number")
        bad = max(limits.min, min(limits.max, bad)) if limits else bad
        t.view(-1)[at] = bad
        return t
    return CHANGED[kind](t)


CHANGED = {
    "fewer rows": lambda t: t[:-1] if t.dim() else t,
    "more rows": lambda t: torch.cat([t, t]) if t.dim() else t,
    "no rows": lambda t: t[:0] if t.dim() else t,
    "fewer columns": lambda t: t[..., :-1] if t.dim() else t,
    "no columns": lambda t: t[..., :0] if t.dim() else t,
    "more columns": lambda t: torch.cat([t, t], -1) if t.dim() else t,
    "another dimension": lambda t: t[None],
    "one more at the end": lambda t: t[..., None],
    "flat": lambda t: t.flatten(),
    "one number": lambda t: t.flatten()[0] if t.numel() else t,
    "transposed": lambda t: t.mT if t.dim() > 1 else t,
    "one row for all": lambda t: t[:1].expand_as(t) if t.dim() and len(t) else t,
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse() if t.dim() else t,
    "lazy zeros": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "with gradient": lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
}
CHANGES = ("dtype", "number", "number", *CHANGED)
SCALARS = (-1, 0, 1, 3, 2**31, -(2**31), 0.5, float("nan"), float("inf"))


def bad_call(name, data):
    case, inputs = draw_inputs(name, data)
    function, truth = getattr(ops, name), reference_of(name)
    arguments = OPERATORS[name].arguments(inputs, case)
    options = [k for k, v in arguments.items() if isinstance(v, (torch.Tensor, int, float))]
    options = [k for k in options if k != "tables"]
    for argument in data.draw(
        st.lists(st.sampled_from(options), min_size=1, max_size=2, unique=True), "which"
    ):
        value = arguments[argument]
        if isinstance(value, torch.Tensor):
            arguments[argument] = changed(value, data)
        else:
            arguments[argument] = data.draw(st.sampled_from(SCALARS), argument)
    try:
        out = as_list(function(**arguments))
    except (TypeError, ValueError, RuntimeError) as error:
        named = "|".join(inspect.signature(function).parameters)
        clear = rf"(^|\s)({named})(\[[-0-9, ]+\])*(:| = )|argument '({named})'|[sS]parse"
        assert re.search(clear, str(error)), repr(error)
        return
    if any(got.is_meta or got.is_sparse for got in out):  # torch's own functions, no numbers
        return
    for got, want in zip(out, as_list(truth(**widened(arguments))), strict=True):
        assert got.shape == want.shape
        assert torch.equal(got.isfinite(), want.isfinite())
        assert_close(got.nan_to_num(0, 0, 0), want.nan_to_num(0, 0, 0), 0, name, SLACK[got.dtype])


test_a_bad_argument_is_named_or_means_what_the_reference_says = fuzz(60, bad_call)
