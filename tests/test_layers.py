"""Imports run one way, and hosts are the points of a star: none of them is known by name above."""

import ast
from pathlib import Path

import pytest

import fastmlip

ROOT = Path(fastmlip.__file__).parent
FILES = {
    ".".join(("fastmlip", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in ROOT.rglob("*.py")
}
# from the top down; a host's folder is one layer, and the files beside it are the lowest
ABOVE_HOSTS = ("modifiers", "tabulate", "swap", "self_check", "fingerprints", "hosts")
HOSTS = sorted(p.parent.name for p in (ROOT / "integrations").glob("*/__init__.py"))


def imports(path):
    """Names of the modules of fastmlip that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastmlip"):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in FILES}
    return found


GRAPH = {name: imports(path) for name, path in FILES.items()}


def test_no_circle():
    """Between modules; importing the package itself is importing all of it."""
    state = {}

    def visit(name, trail):
        assert state.get(name) != "open", " -> ".join([*trail, name])
        if name not in state:
            state[name] = "open"
            for other in sorted(GRAPH[name] & (GRAPH.keys() - {"fastmlip"})):
                visit(other, [*trail, name])
            state[name] = "done"

    for name in sorted(GRAPH):
        visit(name, [])


def layer(name):
    part = name.removeprefix("fastmlip.integrations").strip(".").split(".")[0]
    if not part:
        return 0
    if part in ABOVE_HOSTS:
        return 1 + ABOVE_HOSTS.index(part)
    return 10 if part in HOSTS else 20


@pytest.mark.parametrize("name", [n for n in GRAPH if n.startswith("fastmlip.integrations.")])
def test_no_arrow_runs_up(name):
    for other in GRAPH[name]:
        assert not other.startswith(("fastmlip.checks", "fastmlip.cli"))
        if other.startswith("fastmlip.integrations"):
            assert layer(name) <= layer(other), f"{name} imports {other}"


@pytest.mark.parametrize(
    "name", [n for n in GRAPH if n.startswith("fastmlip.checks")]
    + [f"fastmlip.integrations.{n}" for n in ("host", "swap", "tabulate")],
)  # fmt: skip
def test_no_host_is_known_by_name(name):
    for host in HOSTS:
        assert not any(f"integrations.{host}" in other for other in GRAPH[name])
