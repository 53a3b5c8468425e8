"""Code for an instruction set stands in functions of its namespace alone: others run everywhere.

The compiler could put it elsewhere: functions that are not of the namespace, as those of
``std::vector<int64_t>``, are compiled once for every instruction set, and the linker keeps one.
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fastmlip

pytestmark = [
    pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set here"),
]

# what only these sets have: registers of 512 bits, the upper 16 of others, and masks; and the v
# that AVX, AVX2 and FMA write before the names of older instructions
NEEDS = {
    "avx512": re.compile(r"%zmm|%[xy]mm(?:1[6-9]|2\d|3[01])|%k[0-7]"),
    "avx2": re.compile(r"\tv(?!er[rw])\w|%ymm"),
}
NAMESPACES = {"avx512": ("6avx512",), "avx2": ("4avx2", "6avx512")}  # as names are mangled


def functions(library):
    """``(mangled name, instructions)`` of the functions of a library."""
    command = ["objdump", "-d", "--no-show-raw-insn", "-w", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for block in listing.split("\n\n"):
        name, _, instructions = block.partition(">:\n")
        if instructions:
            yield name.partition("<")[2], instructions


def misplaced(functions):
    """``(function, set)`` of code for an instruction set in a function that is not of it."""
    return [
        (name, needed)
        for name, instructions in functions
        for needed, namespaces in NAMESPACES.items()
        if not any(namespace in name for namespace in namespaces)
        and NEEDS[needed].search(instructions)
    ]


def test_the_built_library():
    (library,) = Path(fastmlip.__file__).parent.glob("_C*.so")
    found = list(functions(library))
    for name, needed in NEEDS.items():
        own = (code for function, code in found if NAMESPACES[name][0] in function)
        assert any(needed.search(code) for code in own), f"no code for {name} is seen"
    assert misplaced(found) == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(("namespace", "flag"), [("portable", "-mavx2"), ("avx2", "-mavx512f")])
def test_code_in_the_wrong_place_is_found(tmp_path, namespace, flag):
    source, library = tmp_path / "wrong.cpp", tmp_path / "wrong.so"
    source.write_text(f"""
        namespace {namespace} {{
        void add(double* x, const double* y) {{
          for (int i = 0; i < 1024; ++i) x[i] += y[i];
        }}
        }}
    """)
    wide = ["-mprefer-vector-width=512"] if flag == "-mavx512f" else []
    command = ["g++", "-O3", flag, *wide, "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    ((function, _),) = misplaced(functions(library))
    assert "add" in function
