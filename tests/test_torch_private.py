"""What is used of torch beyond its public interface: all in one module, and nothing breaks without
it."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

import fastmlip
from fastmlip import torch_private, use_backend
from fastmlip.testing import OPERATORS, assert_close, derivatives
from fastmlip.testing.process import run_python

PACKAGE = Path(fastmlip.__file__).parent
CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"


class Without:
    """An object without some attributes of its attributes."""

    def __init__(self, real, paths):
        self.real, self.paths = real, paths

    def __getattr__(self, name):
        rest = [path[1:] for path in self.paths if path[0] == name]
        if [] in rest:
            raise AttributeError(name)
        value = getattr(self.real, name)
        return Without(value, rest) if rest else value


def module_without(*names):
    """:mod:`fastmlip.torch_private` as it is imported with a torch that has dropped ``names``."""
    spec = importlib.util.spec_from_file_location("fastmlip.torch_private", torch_private.__file__)
    module = importlib.util.module_from_spec(spec)
    sys.modules["torch"] = Without(torch, [name.split(".") for name in names])
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules["torch"] = torch
    module.torch, module.Tensor = torch, torch.Tensor
    return module


@pytest.mark.parametrize("missing", [[name] for name in torch_private.USES] + [torch_private.USES])
def test_a_torch_without_it_gives_the_same_numbers(missing, monkeypatch):
    for name in missing:
        assert torch_private._find(name) is not None, f"torch has dropped {name}"
    for name, value in vars(module_without(*missing)).items():
        if not name.startswith("__"):
            monkeypatch.setattr(torch_private, name, value)
    for name, operator in OPERATORS.items():
        row = next(iter(operator.cases))
        op, reference = operator.functions(row)
        inputs = operator.make_inputs(operator.cases[row], **operator.small)
        truths = derivatives(reference, inputs, 2)
        for got, want in zip(derivatives(op, inputs, 2), truths, strict=True):
            assert_close(got.value, want.value, got.order, f"{name} {got.name}")
        with torch.no_grad():
            assert_close(op(*inputs), truths[0].value)

        def of_first(x, op=op, inputs=inputs):
            return op(x, *inputs[1:])

        assert_close(torch.func.vmap(of_first)(inputs[0][None])[0], truths[0].value)
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.func.jvp(of_first, inputs[:1], inputs[:1])
    counted = torch_private.count_operators("fastmlip", lambda: op(*inputs))
    assert counted == {"zbl_cpu": 1}, counted
    torch.compiler.reset()
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)  # zbl, the last of the table
    for got, want in zip(derivatives(compiled, inputs, 1), truths, strict=False):
        assert_close(got.value, want.value, got.order, got.name)
    with use_backend("reference"), pytest.raises(RuntimeError, match="edge_src: every entry must"):
        fastmlip.ops.edge_vectors(torch.zeros(2, 3), torch.tensor([0]), torch.tensor([2]))


def test_the_package_is_imported_without_any_of_them():
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import test_torch_private as tests
        names = tests.torch_private.USES
        for name in [name for name in sys.modules if name.startswith("fastmlip")]:
            del sys.modules[name]
        sys.modules["fastmlip.torch_private"] = tests.module_without(*names)
        import fastmlip.ops.ladder
        assert fastmlip.ops.ladder.torch_private.modes_active()
        print("imported")
    """
    assert run_python(code, str(Path(__file__).parent)).strip() == "imported"


def test_nothing_else_uses_torch_beyond_its_public_interface():
    """``torch._inductor`` is how torch's documentation makes a package, loads one, and lists
    options."""
    private = re.compile(
        r"\btorch(\.\w+)*?\.(_(?!_|inductor\.(aoti_\w+_package|list_options)\b)\w+)"
        r"|forward_ad|functorch"
    )
    for path in sorted(PACKAGE.rglob("*.py")) + sorted(PACKAGE.parent.glob("kernels/*.py")):
        if path.name != "torch_private.py":
            found = [line for line in path.read_text().splitlines() if private.search(line)]
            assert not found, f"{path.name}: {found}"


@pytest.mark.skipif(not CONTRIBUTING.is_file(), reason="an installed package")
def test_the_list_is_in_contributing():
    text = CONTRIBUTING.read_text()
    assert all(f"`torch.{name}`" in text for name in torch_private.USES)
