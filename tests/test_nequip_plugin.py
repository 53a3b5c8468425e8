"""The plug-in steps aside where NequIP is not the one it knows: stubs of other versions."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# NequIP imports its extensions in the middle of its own import
NEQUIP = {
    "nequip/__init__.py": "import fastmlip_nequip_plugin\n",
    "nequip/model/__init__.py": "",
    "nequip/model/modify_utils.py": (
        "def get_all_modifiers(module, _all_modifiers=None):\n"
        "    return {'theirs': module}\n"
        "def modify(model, modifiers):\n"
        "    return model\n"
    ),
    "nequip/scripts/__init__.py": "",
    "nequip/scripts/_package_utils.py": (
        "known = []\n"
        "def register_libraries_as_external_for_packaging(extern_modules):\n"
        "    known.extend(extern_modules)\n"
    ),
}  # fmt: skip
FASTMLIP = {
    "fastmlip/__init__.py": "",
    "fastmlip/integrations/__init__.py": "",
    "fastmlip/integrations/modifiers.py": (
        "def modifiers(module, theirs):\n    return {'ours': module}\n"
    ),
    "fastmlip/integrations/nequip/__init__.py": "",
    "fastmlip/integrations/nequip/energies.py": (
        "def by_type_name(model):\n    return {**model, 'lists': 1}\n"
    ),
}
USE = """
import nequip.model.modify_utils as m, nequip.scripts._package_utils as p
for _ in range(3):
    found = getattr(m, "get_all_modifiers", lambda module: {})(7)
print(found, getattr(p, "known", None))
"""
LISTS = """
import nequip.model.modify_utils as m
asked = [{"modifier": "enable_FastMLIP"}]
print(m.modify({}, asked), m.modify(model={}, modifiers=asked), m.modify({}, []), end=" ")
print(m.modify(1, asked))
"""


def run(folder, changes, *options, use=USE):
    """Output and errors of a process with these stubs in the place of both packages."""
    for path, text in {**NEQUIP, **FASTMLIP, **changes}.items():
        if text is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    (folder / "fastmlip_nequip_plugin.py").write_text(
        (ROOT / "fastmlip_nequip_plugin.py").read_text()
    )
    command = [sys.executable, "-S", *options, "-c", use]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip(), result.stderr


def test_the_stub_of_the_known_version(tmp_path):
    out, errors = run(tmp_path, {})
    assert out == "{'theirs': 7, 'ours': 7} ['fastmlip']"
    assert errors == ""


MODIFY, PACKAGE = "nequip/model/modify_utils.py", "nequip/scripts/_package_utils.py"
MODIFIERS = "its modifiers, such as enable_FastMLIP, are not offered"
PACKAGES = "nequip-package cannot package models that use it"
OTHERS = {
    "no get_all_modifiers": ({MODIFY: "def modify(): pass\n"}, "{} ['fastmlip']", MODIFIERS),
    "no way to declare libraries": (
        {PACKAGE: "known = 0\n"}, "{'theirs': 7, 'ours': 7} 0", PACKAGES,
    ),
    "another signature of it": (
        {PACKAGE: "known = 0\ndef register_libraries_as_external_for_packaging(a, b): pass\n"},
        "{'theirs': 7, 'ours': 7} 0", PACKAGES,
    ),
    "modifiers in a tuple": (
        {MODIFY: "def get_all_modifiers(module):\n    return (module,)\nmodify = print\n"},
        "(7,) ['fastmlip']", MODIFIERS,
    ),
    "fastmlip cannot be imported": (
        {"fastmlip/__init__.py": "raise ImportError('no libstdc++')\n"},
        "{'theirs': 7} ['fastmlip']", MODIFIERS,
    ),
    "fastmlip fails at the model": (
        {"fastmlip/integrations/modifiers.py": "def modifiers(*_):\n    return 1 / 0\n"},
        "{'theirs': 7} ['fastmlip']", MODIFIERS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_it_warns_once_and_steps_aside(tmp_path, other):
    changes, expected, what = OTHERS[other]
    out, errors = run(tmp_path, changes)
    assert out == expected
    assert errors.count(what) == 1 and "fastmlip of an unknown version with nequip" in errors
    out, errors = run(tmp_path, changes, "-W", "error")
    assert out == expected and errors.count(what) == 1


def test_a_collection_that_calls_itself(tmp_path):
    """Under other names of its arguments; ours are added once, at the outermost call."""
    text = (
        "def get_all_modifiers(model, inner=False):\n"
        "    return {'theirs': model} if inner else {**get_all_modifiers(model, inner=True)}\n"
    )
    assert run(tmp_path, {MODIFY: text + "def modify(): pass\n"}) == (
        "{'theirs': 7, 'ours': 7} ['fastmlip']",
        "",
    )


def test_lists_in_configs(tmp_path):
    with_lists, without = "{'lists': 1}", "{}"
    out, errors = run(tmp_path / "known", {}, use=LISTS)
    assert out == f"{with_lists} {with_lists} {without} 1" and errors == ""
    what = "a config's scales and shifts cannot be lists"
    gone = {"fastmlip/integrations/nequip/energies.py": "raise OSError\n"}
    out, errors = run(tmp_path / "gone", gone, use=LISTS)
    assert out == f"{without} {without} {without} 1" and errors.count(what) == 1
    unprintable = (
        "class A:\n    def __repr__(self):\n        raise OSError\n"
        "import nequip.model.modify_utils as m\nm.modify([A()], [])\nprint('ran')\n"
    )
    assert run(tmp_path / "odd", {}, use=unprintable)[0] == "ran"
    other = {MODIFY: "def modify(model, modifiers, more=1):\n    return model\n"}
    out, errors = run(tmp_path / "other", other, use=LISTS)
    assert out == f"{with_lists} {with_lists} {without} 1" and errors.count(MODIFIERS) == 1


def test_errors_of_nequip_itself_are_its_own(tmp_path):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run(tmp_path, {MODIFY: "1 / 0\n"})
