"""Calls of the C++ operators, as eager code and compiled models make them, with one number wrong.

``python corrupted.py OPERATOR CASE VALUES`` calls an operator and its derivatives, and then each of
the operators below again with each integer of its arguments (of tables, orders, indices, sizes)
changed to each of VALUES: expressions of ``good``. A call must raise, or give numbers in all places
where the good call did, in memory that starts as NaN. What it does last is printed first.
"""

import inspect
import sys
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastmlip.testing import OPERATORS, derivatives, poison_empty

SIZES = {"nodes": 4, "edges": 7, "atoms": 5}


class Calls(TorchDispatchMode):
    """The first call of each of the C++ operators."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.namespace == "fastmlip" and not keywords:
            self.found.setdefault(function, list(arguments))
        return function(*arguments, **(keywords or {}))


def calls_of(operator, case):
    row = OPERATORS[operator]
    case = row.cases[case]
    known = inspect.signature(row.make_inputs).parameters
    inputs = row.make_inputs(case, **{k: n for k, n in SIZES.items() if k in known})
    with Calls() as calls:
        derivatives(partial(row.op, problem=getattr(case, "problem", case)), inputs, 2)
    return calls.found.items()


def without_nan(argument):
    if isinstance(argument, torch.Tensor) and argument.is_floating_point():
        return argument.detach().nan_to_num()  # rows that an operator keeps room for
    return argument


def places(arguments):
    """``(number of the argument, place in it)`` of each integer."""
    for number, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor) and argument.dtype in (torch.int32, torch.int64):
            yield from ((number, place) for place in range(argument.numel()))
        elif type(argument) is int:
            yield number, None


def changed(argument, place, value):
    """``value(good)`` for one integer of an argument; None where that is no other one."""
    good = argument if place is None else argument.flatten()[place].item()
    wrong = value(good)
    if wrong == good or not -(2**63) <= wrong < 2**63:
        return None
    if place is None:
        return wrong
    argument = argument.clone(memory_format=torch.contiguous_format)
    argument.view(-1)[place] = wrong
    return argument


def finite(output):
    output = output if isinstance(output, (tuple, list)) else (output,)
    return [bool(t.isfinite().all()) for t in output]


def corrupt(function, arguments, values):
    """How many calls raised, and how many gave numbers."""
    raised = gave = 0
    arguments = [without_nan(a) for a in arguments]
    good = finite(function(*arguments))
    for number, place in places(arguments):
        for text, value in values.items():
            wrong = changed(arguments[number], place, value)
            if wrong is None:
                continue
            name = function._schema.arguments[number].name
            where = f"{function} with {name}[{place}] = {text}"
            print(where, flush=True)
            try:
                out = function(*arguments[:number], wrong, *arguments[number + 1 :])
            except RuntimeError:
                raised += 1
                continue
            gave += 1
            assert all(now or not before for now, before in zip(finite(out), good, strict=True)), (
                f"{where}: numbers are missing"
            )
    return raised, gave


if __name__ == "__main__":
    operator, case, *texts = sys.argv[1:]
    values = {text: eval(f"lambda good: {text}") for text in texts}
    torch.set_num_threads(1)
    with poison_empty():
        for function, arguments in calls_of(operator, case):
            raised, gave = corrupt(function, arguments, values)
            print(f"{function}: {raised} raised, {gave} gave numbers")
