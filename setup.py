"""Build of the C++ extension: one kernel source, compiled once per instruction set, with ninja.

Everything else about the package stands in pyproject.toml.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
X86 = platform.machine() in ("x86_64", "AMD64")
# Instruction sets a kernel source is compiled for: name -> (vector bytes, compiler flags).
# portable first: of code shared by all sets, the linker keeps the first and most modest copy
ISAS = {"portable": (16, [])}
if X86:
    ISAS["avx2"] = (32, ["-mavx2", "-mfma"])
    ISAS["avx512"] = (64, ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"])
    ISAS["avx512"][1].append("-mprefer-vector-width=512")
CSRC = ROOT / "csrc"
# have no vectors: compiled once
PLAIN = {*CSRC.glob("base/*.cpp"), *CSRC.glob("graph/*.cpp")}
PLAIN |= {CSRC / "operators/ghost_exchange.cpp", CSRC / "operators/radial_plan.cpp"}
KERNELS = {*CSRC.glob("operators/*.cpp")} - PLAIN
TORCH = {*CSRC.glob("torch/*.cpp")}
OLDEST_TORCH = (2, 11)  # that this binary serves
TORCH_ABI = "0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH)
GIB_PER_COMPILER = 2

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall"]
FLAGS += ["-Wno-unknown-pragmas", "-fno-math-errno", "-Wno-psabi"]
# the largest l of irreps, which Python and C++ share
L_MAX = re.search(r"^L_MAX = (\d+)", (ROOT / "fastmlip/problem.py").read_text(), re.M)[1]
FLAGS += [f"-DFASTMLIP_L_MAX={L_MAX}"]
# `make sanitize`: an extension that stops at the first access out of bounds or undefined behaviour
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1 -DFASTMLIP_NO_UNROLL"


def find_torch() -> Path:
    """The folder of the installed torch, whose headers and libraries are all that a build needs.

    pip's build isolation hides the packages of the environment that it installs into, but the
    interpreter is that environment's: torch is looked for there, and never downloaded.
    """
    spec = importlib.util.find_spec("torch")
    bases = ({}, {"base": sys.base_prefix, "platbase": sys.base_prefix})
    folders = list(spec.submodule_search_locations or ()) if spec else []
    folders += [
        f"{sysconfig.get_path(kind, vars=base)}/torch"
        for base in bases
        for kind in ("purelib", "platlib")
    ]
    found = next((Path(folder) for folder in folders if Path(folder, "include").is_dir()), None)
    oldest = ".".join(map(str, OLDEST_TORCH))
    if found is None:
        raise RuntimeError(
            f"the build of fastmlip needs torch {oldest} or newer, and there is none in {folders}. "
            "Install torch first, then fastmlip: pip install --no-build-isolation fastmlip"
        )
    version = re.search(r"__version__ = '((\d+)\.(\d+)\S*)'", (found / "version.py").read_text())
    if version and (int(version[2]), int(version[3])) < OLDEST_TORCH:
        raise RuntimeError(f"expected torch {oldest} or newer, got {version[1]} in {found}")
    return found


def jobs() -> int:
    """How many compilers run at a time: ``MAX_JOBS``, or what cores and memory allow."""
    asked = os.environ.get("MAX_JOBS")
    if asked is None:
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return max(1, min(len(os.sched_getaffinity(0)), int(gib / GIB_PER_COMPILER)))
    if not asked.isdigit() or int(asked) < 1:
        raise RuntimeError(f"MAX_JOBS: expected a whole number of 1 or more, got {asked!r}")
    return int(asked)


def sanitized() -> bool:
    return os.environ.get("FASTMLIP_SANITIZE", "0") == "1"


class NinjaBuild(build_ext):
    """Writes build.ninja and runs it, so that nothing is compiled twice that has not changed."""

    def folder(self) -> Path:
        """Where objects lie, and stay: those of setuptools may not."""
        kind = f"ninja-{platform.machine()}" + ("-sanitize" if sanitized() else "")
        build = ROOT / "build" / kind
        build.mkdir(parents=True, exist_ok=True)
        return build

    def build_extension(self, ext: Extension) -> None:
        torch, build = find_torch(), self.folder()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)

        def near(path: Path) -> str:  # relative: a tree that was moved is not compiled again
            return os.path.relpath(path, build) if path.is_relative_to(ROOT) else str(path)

        headers = f"-I{near(CSRC)}"
        torch_flags = [f"-isystem {near(torch / 'include')}"]
        torch_flags += [f"-DTORCH_TARGET_VERSION={TORCH_ABI}", "-D_GLIBCXX_USE_CXX11_ABI=1"]
        torch_flags += ["-DFASTMLIP_X86"] if X86 else []
        units = [(f"torch_{source.stem}", source, torch_flags) for source in sorted(TORCH)]
        units += [(source.stem, source, []) for source in sorted(PLAIN)]
        for source in sorted(KERNELS):
            for isa, (vector_bytes, flags) in ISAS.items():
                defines = [f"-DFASTMLIP_ISA={isa}", f"-DFASTMLIP_VECTOR_BYTES={vector_bytes}"]
                units.append((f"{source.stem}_{isa}", source, defines + flags))

        extra = os.environ.get("FASTMLIP_CXXFLAGS", "") + (f" {SANITIZE}" if sanitized() else "")
        libraries = f"-L{near(torch / 'lib')} -ltorch_cpu -lc10"
        lines = [
            f"cxx = {os.environ.get('CXX', 'g++')}",
            f"flags = {' '.join(FLAGS)} {headers} {extra}",
            "rule compile",
            "  command = $cxx -MMD -MF $out.d $flags $unit -c $in -o $out",
            "  deps = gcc",
            "  depfile = $out.d",
            "rule link",
            f"  command = $cxx -shared {extra} $in -o $out {libraries}",
        ]
        for unit, source, flags in units:
            lines.append(f"build {unit}.o: compile {near(source)}")
            lines.append(f"  unit = {' '.join(flags)}")
        lines.append(f"build {near(target)}: link {' '.join(f'{unit}.o' for unit, *_ in units)}")
        (build / "build.ninja").write_text("\n".join(lines) + "\n")
        scripts = sysconfig.get_path("scripts")
        ninja = shutil.which("ninja", path=scripts) or shutil.which("ninja")
        if ninja is None:
            raise RuntimeError("ninja is needed to build the extension: pip install ninja")
        subprocess.run([ninja, f"-j{jobs()}"], cwd=build, check=True)


setup(
    ext_modules=[Extension("fastmlip._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": NinjaBuild},
    # the extension knows torch, not Python; wheels of free-threaded Pythons cannot say so
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
