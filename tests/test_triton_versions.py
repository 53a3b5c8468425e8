"""GPU kernels compiled with the Triton of the oldest torch that is supported, and with the newest.

``make tritons`` puts each into a folder of its own, which comes first in the path of a process.
"""

import json
from pathlib import Path

import pytest

from fastmlip import backend
from fastmlip.gpu.passes import SHOWN
from fastmlip.testing.process import run_python

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(backend.interpreting(), reason="the interpreter compiles nothing")

FOLDER = Path(__file__).parents[1] / "build/triton"
SLICE = {
    **{operator: cases[0] for operator, cases in SHOWN.items()},
    "tensor_product_conv": "nequip-S-last",
    "edge_embedding": "nequip-S",
    "contraction": "l_max 1",
}
CODE = """
    import json, sys
    import triton
    from fastmlip.gpu import passes, report
    from fastmlip.gpu.targets import TARGETS
    cases, targets = map(json.loads, sys.argv[1:])
    todo = [one for case in cases.items() for one in passes.passes(*case)]
    rows = report.rows(todo, [TARGETS[name] for name in targets])
    bad = [f"{row.operator} {row.order} on {row.target}: {row.why}" for row in rows if row.fails]
    print(json.dumps({"version": triton.__version__, "passes": len(todo), "bad": bad}))
"""


def compile_with(triton, cases, targets):
    """Kernels of some cases with a Triton of :data:`FOLDER`; what it says."""
    folder = FOLDER / triton
    if not folder.exists():
        pytest.skip(f"{folder} is not there: make tritons")
    said = run_python(CODE, json.dumps(cases), json.dumps(targets), PYTHONPATH=str(folder))
    done = json.loads(said.splitlines()[-1])
    assert (folder / f"triton-{done['version']}.dist-info").exists(), "another Triton was imported"
    return done


@pytest.mark.parametrize("triton", ["3.6.0", "newest"])
def test_kernels_of_every_operator_compile(triton):
    done = compile_with(triton, SLICE, ["sm_90"])
    assert done["passes"] >= 2 * len(SLICE) and not done["bad"], done


@pytest.mark.slow
@pytest.mark.parametrize("triton", ["3.6.0", "newest"])
def test_kernels_of_real_models_compile(triton):
    cases = {operator: cases[0] for operator, cases in SHOWN.items()}
    done = compile_with(triton, cases, ["sm_80", "sm_90", "sm_100", "gfx942"])
    assert not done["bad"], done
