"""What a stranger installs: the sdist, the wheel, the symbols of its library, how it is built."""

import importlib.metadata
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools

import fastmlip

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"fastmlip": "fastmlip", "bench": "fastmlip/bench", "kernels": "fastmlip/kernels"}
PLUGIN = "csrc/lammps"  # which users compile
FILES = ("LICENSE", "MANIFEST.in", "README.md", "fastmlip_nequip_plugin.py", "pyproject.toml",
         "setup.py")  # fmt: skip
# auditwheel's policy for manylinux_2_28, torch's own platform
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}


def copy_of_the_tree(folder):
    """All that a build reads, and what it should leave out."""
    unwanted = shutil.ignore_patterns("*.so", "__pycache__")
    for name in (*FOLDERS, "csrc", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


def sources():
    """Python files and data of the packages, as paths in a wheel."""
    found = {"fastmlip_nequip_plugin.py"}
    for folder, installed in FOLDERS.items():
        for pattern in ("*.py", "*.jinja", "py.typed"):
            for path in (ROOT / folder).rglob(pattern):
                found.add(f"{installed}/{path.relative_to(ROOT / folder).as_posix()}")
    return found | {f"fastmlip/{PLUGIN}/{path.name}" for path in (ROOT / PLUGIN).iterdir()}


def run(*command, **env):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=1800,
        env={**os.environ, **env}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


# ---------------------------------------------------------------- the library


def test_no_symbol_of_the_library_is_too_new_for_glibc_2_28():
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    (library,) = Path(fastmlip.__file__).parent.glob("_C*.so")
    symbols = run("objdump", "-T", library)
    versioned = re.findall(r"\(?\b(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)\)?\s+(\S+)$", symbols, re.M)
    assert len(versioned) > 30
    new = [
        f"{name}@{kind}_{version}"
        for kind, version, name in versioned
        if tuple(map(int, version.split("."))) > NEWEST[kind]
    ]
    assert not new, "see csrc/base/old_glibc.cpp"
    defined = [line.split()[-1] for line in symbols.splitlines() if " g " in line or " w " in line]
    assert not {"pow", "__libc_single_threaded"} & set(defined), "not for others to find"


# ---------------------------------------------------------------- what pyproject.toml says


def test_the_project_describes_itself():
    project = PROJECT["project"]
    assert project["version"] == fastmlip.__version__ == importlib.metadata.version("fastmlip")
    assert project["authors"] and project["keywords"]
    assert "Typing :: Typed" in project["classifiers"]
    assert not any(r.startswith("torch") for r in PROJECT["build-system"]["requires"])


def test_every_package_is_listed():
    found = {".".join(Path(path).parts[:-1]) for path in sources() if path.endswith("__init__.py")}
    found.add(f"fastmlip.{PLUGIN.replace('/', '.')}")
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


# ---------------------------------------------------------------- the build


@pytest.fixture
def build(tmp_path, monkeypatch):
    """The names of setup.py in a copy of the tree, and what would run instead of ninja."""
    commands = []
    copy = copy_of_the_tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **_: None)
        names = runpy.run_path(str(copy / "setup.py"))
    monkeypatch.setattr(names["subprocess"], "run", lambda command, **_: commands.append(command))
    return copy, names, commands


def test_ninja_takes_as_many_compilers_as_asked_for_or_as_memory_allows(build, monkeypatch):
    copy, names, commands = build
    command = names["NinjaBuild"](setuptools.Distribution())
    command.get_ext_fullpath = lambda name: str(copy / "fastmlip/_C.abi3.so")
    monkeypatch.setenv("MAX_JOBS", "3")
    command.build_extension(setuptools.Extension("fastmlip._C", []))
    assert commands[0][1:] == ["-j3"]

    monkeypatch.delenv("MAX_JOBS")
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 5 * 2**30 // 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert names["jobs"]() == 2
    pages["SC_PHYS_PAGES"] //= 5
    assert names["jobs"]() == 1
    pages["SC_PHYS_PAGES"] *= 1000
    assert names["jobs"]() == 64
    for wrong in ("0", "-1", "many", ""):
        monkeypatch.setenv("MAX_JOBS", wrong)
        with pytest.raises(RuntimeError, match=rf"MAX_JOBS: .* got '{wrong}'"):
            names["jobs"]()


def test_a_tree_that_was_moved_is_not_compiled_again(build):
    copy, names, _ = build
    command = names["NinjaBuild"](setuptools.Distribution())
    command.get_ext_fullpath = lambda name: str(copy / "fastmlip/_C.abi3.so")
    command.build_extension(setuptools.Extension("fastmlip._C", []))
    (ninja,) = copy.glob("build/*/build.ninja")
    text = ninja.read_text()
    assert (
        "../../csrc/operators/zbl.cpp" in text and "build ../../fastmlip/_C.abi3.so: link" in text
    )
    assert str(copy) not in text


def test_a_build_takes_the_torch_that_is_installed_and_says_where_there_is_none(
    build, monkeypatch, tmp_path
):
    _, names, _ = build
    installed = names["find_torch"]()
    assert (installed / "include/torch/csrc/stable/library.h").is_file()
    # as in pip's build isolation: not to be imported, but in the environment
    monkeypatch.setattr(names["importlib"].util, "find_spec", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_, **__: str(installed.parent))
    assert names["find_torch"]() == installed
    monkeypatch.setattr(sysconfig, "get_path", lambda *_, **__: str(tmp_path / "site"))
    with pytest.raises(RuntimeError, match=r"needs torch 2\.11 or newer.*Install torch first"):
        names["find_torch"]()
    old = tmp_path / "site/torch"
    (old / "include").mkdir(parents=True)
    (old / "version.py").write_text("__version__ = '2.9.1+cu128'\n")
    with pytest.raises(RuntimeError, match=r"expected torch 2.11 or newer, got 2.9.1\+cu128"):
        names["find_torch"]()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_installs_the_torch_that_is_asked_for_over_another(tmp_path):
    for stamp in (".torch", ".torch-9.1.0", ".built", ".test"):  # as if all were up to date
        (tmp_path / stamp).touch()

    def commands(torch):
        return run("make", "-n", "-C", ROOT, "test", f"TORCH={torch}", f"VENV={tmp_path}")

    assert "pip" not in commands("9.1.0")
    other = commands("9.2.0")
    assert '"torch==9.2.0"' in other and f"rm -f {tmp_path}/.torch-*" in other
    assert f"-c {tmp_path}/.torch-9.2.0" in other  # nothing that is installed later changes it


# ---------------------------------------------------------------- sdist and wheel


def make_sdist(folder):
    tree = copy_of_the_tree(folder / "tree")
    code = f"import os; os.chdir({str(tree)!r}); from setuptools.build_meta import build_sdist as b"
    run(sys.executable, "-c", f"{code}; b({str(folder)!r})")
    (path,) = folder.glob("*.tar.gz")
    return path


def test_the_sdist_has_all_that_a_build_needs_and_no_more(tmp_path):
    (tmp_path / "tree").mkdir()
    with tarfile.open(make_sdist(tmp_path)) as archive:
        files = [Path(m.name) for m in archive.getmembers() if m.isfile()]
    found = {Path(*file.parts[1:]).as_posix() for file in files}
    back = {installed: folder for folder, installed in FOLDERS.items()}
    wanted = {"fastmlip_nequip_plugin.py", "PKG-INFO", "setup.cfg", *FILES}
    for path in sources() - {"fastmlip_nequip_plugin.py"}:
        package = next(
            (i for i in ("fastmlip/bench", "fastmlip/kernels") if path.startswith(i)), ""
        )
        if not path.startswith(f"fastmlip/{PLUGIN}/"):
            wanted.add(back[package] + path.removeprefix(package) if package else path)
    wanted |= {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()
    }
    assert {f for f in found if not f.startswith("fastmlip.egg-info/")} == wanted


def clean_environment(folder):
    """An environment without fastmlip, which finds the packages that the tests run with."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    site = next(folder.glob("lib/python*/site-packages"))
    # a folder that a .pth file names is only appended: links to editable packages in it are not
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "others.pth").write_text("\n".join(others) + "\n")
    return folder / "bin/python"


INSTALL = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
USE = """
import shutil
assert compilers == [name for name in ("cc", "c++", "gcc", "g++", "clang++") if shutil.which(name)]

import pathlib, sys, torch, fastmlip
assert pathlib.Path(fastmlip.__file__).is_relative_to(sys.prefix), fastmlip.__file__
assert fastmlip.info()["cpu tensors"] == "cpp", fastmlip.info()

from fastmlip.ops import edge_vectors
positions = torch.tensor([[0.0, 0, 0], [1, 2, 4]], dtype=torch.float64, requires_grad=True)
vectors = edge_vectors(positions, torch.tensor([0, 1]), torch.tensor([1, 0]))
assert vectors.tolist() == [[1, 2, 4], [-1, -2, -4]], vectors
vectors[0].sum().backward()
assert positions.grad.tolist() == [[-1] * 3, [1] * 3], positions.grad
import fastmlip.bench, fastmlip.kernels, fastmlip_nequip_plugin
print("ran")
"""


@pytest.mark.slow
def test_sdist_and_wheel_install_and_run_in_clean_environments(tmp_path):
    """The sdist with a compiler; the wheel that is made of it without any."""
    (tmp_path / "tree").mkdir()
    with tarfile.open(make_sdist(tmp_path)) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    objects = ROOT / f"build/ninja-{platform.machine()}"
    if objects.is_dir():  # all of the same source and flags are newer, and not compiled again
        shutil.copytree(objects, unpacked / "build" / objects.name)

    python = clean_environment(tmp_path / "from sdist")
    pip = (sys.executable, "-m", "pip", "-q")
    run(*pip, "--python", python, "install", *INSTALL, unpacked)
    there = [name for name in ("cc", "c++", "gcc", "g++", "clang++") if shutil.which(name)]
    code = f"compilers = {there}\n{USE}"
    assert run(python, "-I", "-c", code).strip() == "ran"

    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, unpacked)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    assert names == {*sources(), "fastmlip/_C.abi3.so"}
    bare = clean_environment(tmp_path / "from wheel")
    run(*pip, "--python", bare, "install", *INSTALL, wheel)
    none = str(bare.parent)
    assert run(bare, "-I", "-c", f"compilers = []\n{USE}", PATH=none).strip() == "ran"
