"""Which forwards are known: a fast module may only stand for code that it was written after.

A class is known by its fingerprint: a hash of the source of its ``forward`` and of all functions of
its package that this calls, comments and annotations left out. Models from packages bring their own
copies of the classes, with their source. ``make fingerprints`` prints those of what is installed.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from fastmlip.integrations.inner import added

Module = torch.nn.Module
#: names of classes with their modules, and the fingerprints of each with the versions they are of
Known = Mapping[str, Mapping[str, str]]
# their code is not the host's, and is left out of fingerprints
FOREIGN = {"torch", "torch_geometric", "numpy", *sys.stdlib_module_names}
UNSEEN = {"annotation", "returns", "ctx", "kind", "type_comment", "type_params"}


def objection(parts: Iterable[tuple[str, Module]], known: Known, keeps_hooks: bool = False) -> str:
    """Why a fast module must not stand for any of these modules ``(name, module)``, empty where it
    may: what they are is not known, or something was added to them that would not run.

    ``keeps_hooks``: the first module's own hooks will be those of the fast one.
    """
    for name, module in parts:
        reason = "" if keeps_hooks and not name else added(module)
        if reason := reason or _unknown(module, known):
            return f"its {name}: {reason}" if name else reason
    return ""


def _unknown(module: Module, known: Known) -> str:
    state = vars(module)
    if isinstance(module, torch.jit.ScriptModule):
        return ""  # it has no source, pages ask for its original name
    cls = plain_class(module)
    if package(cls) == "torch":
        return ""
    versions = _versions(cls.__name__, known)
    if not versions:
        return f"the class {cls.__module__}.{cls.__qualname__} is not known"
    try:
        functions = list(called(cls))
    except OSError as error:
        return f"whether its forward is one that is known cannot be told: {error}"
    for function in functions:
        if function.__name__ in state:
            return f"its {function.__name__} was set on the instance"
    if _hash(functions) not in versions:
        tested = ", ".join(dict.fromkeys(versions.values()))
        return (
            f"{cls.__name__} of an unknown version: its forward, or what that calls, differs from "
            f"that of {tested}"
        )
    return ""


def plain_class(module: Module) -> type[Module]:
    """The class of a module, and of one with parametrised weights that of before."""
    cls = type(module)
    parametrized = cls.__name__.startswith("Parametrized") and package(cls) == "torch"
    return cls.__bases__[0] if parametrized else cls


def package(thing: Any) -> str:
    """The top-level package of a class or function; a copy in a packaged model has the same."""
    parts = str(thing.__module__).split(".")
    return parts[1] if parts[0].startswith("<torch_package_") else parts[0]


def _versions(name: str, known: Known) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, versions in known.items():
        if path.rpartition(".")[2] == name:
            found |= versions
    return found


# ---------------------------------------------------------------- fingerprints


def fingerprint(cls: type[Module]) -> str:
    """Of the source of what a call of a module of this class runs, its children aside.

    Raises:
        OSError: no source.
    """
    return _hash(called(cls))


def _hash(functions: Iterable[Any]) -> str:
    texts = sorted(_source(function).text for function in functions)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def called(cls: type[Module]) -> Iterator[Any]:
    """``cls.forward`` and the functions of the host that it calls, directly or not."""
    todo, seen = _functions(inspect.getattr_static(cls, "forward")), set()
    while todo:
        function = todo.pop()
        if function.__code__ in seen or package(function) in FOREIGN:
            continue
        seen.add(function.__code__)
        yield function
        source, scope = _source(function), function.__globals__
        for name in source.of_self:
            todo += _functions(inspect.getattr_static(cls, name, None))
        for name in source.of_super:
            for base in cls.__mro__:
                todo += _functions(vars(base).get(name))
        for name in source.names:
            todo += _functions(scope.get(name))
        for name, attribute in source.attributes:
            if isinstance(scope.get(name), types.ModuleType):
                todo += _functions(getattr(scope[name], attribute, None))


def _functions(thing: Any) -> list[Any]:
    """The Python functions that a call of ``thing`` runs, where it is a function at all."""
    if isinstance(thing, property):
        return _functions(thing.fget)
    thing = getattr(thing, "__func__", thing)  # of a static method, or one of a class
    if not isinstance(thing, types.FunctionType):
        return []
    return [thing, *_functions(getattr(thing, "__wrapped__", None))]


class _Source(NamedTuple):
    """The text of a function in a form that does not depend on the version of Python, and what it
    names: ``self.x``, ``super().x``, ``x``, ``x.y``."""

    text: str
    of_self: list[str]
    of_super: list[str]
    names: list[str]
    attributes: list[tuple[str, str]]


_sources: dict[types.CodeType, _Source] = {}


def _source(function: Any) -> _Source:
    code = function.__code__  # not what a wrapper says that it wraps
    if code not in _sources:
        lines = linecache.getlines(code.co_filename, function.__globals__)
        if not lines:
            raise OSError(f"there is no source of {function.__module__}.{function.__qualname__}")
        block = inspect.getblock(lines[code.co_firstlineno - 1 :])
        try:
            tree = ast.parse(textwrap.dedent("".join(block)))
        except SyntaxError as error:  # of a lambda, for example
            raise OSError(f"the source of {function.__qualname__} is no statement") from error
        _sources[code] = _read(tree.body[0])
    return _sources[code]


def _read(tree: ast.AST) -> _Source:
    source = _Source(_canonical(tree), [], [], [], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            source.names.append(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "self":
                source.of_self.append(node.attr)
            source.attributes.append((node.value.id, node.attr))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value).startswith("super("):
            source.of_super.append(node.attr)
    return source


def _canonical(node: Any) -> str:
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, ast.FunctionDef):
            value = value[1:] if _is_docstring(value[0]) else value
        if name not in UNSEEN and value is not None and value != []:
            fields.append(f"{name}={_canonical(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
