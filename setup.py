"""Build of the C++ extension: one kernel source, compiled once per instruction set, with ninja.

Everything else about the package stands in pyproject.toml.
"""

import os
import platform
import shutil
import subprocess
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
PLAIN = {"edge_order", "edge_pair", "edge_vectors"}  # have no vectors: compiled once
KERNELS = sorted({path.stem for path in ROOT.glob("csrc/*.cpp")} - PLAIN)
TORCH = sorted(path.stem for path in ROOT.glob("csrc/torch/*.cpp"))
TORCH_ABI = "0x020b000000000000"  # the oldest torch that this binary serves: 2.11

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall"]
FLAGS += ["-Wno-unknown-pragmas", "-fno-math-errno", "-Wno-psabi"]
# `make sanitize`: an extension that stops at the first access out of bounds or undefined behaviour
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1 -DFASTMLIP_NO_UNROLL"


class NinjaBuild(build_ext):
    """Writes build.ninja and runs it, so that nothing is compiled twice that has not changed."""

    def build_extension(self, ext: Extension) -> None:
        from torch.utils.cpp_extension import include_paths, library_paths

        torch_flags = [f"-isystem {path}" for path in include_paths()]
        torch_flags += [f"-DTORCH_TARGET_VERSION={TORCH_ABI}", "-D_GLIBCXX_USE_CXX11_ABI=1"]
        torch_flags += ["-DFASTMLIP_X86"] if X86 else []
        units = [(f"torch_{name}", f"torch/{name}", torch_flags) for name in TORCH]
        units += [(name, name, []) for name in sorted(PLAIN)]
        for kernel in KERNELS:
            for isa, (vector_bytes, flags) in ISAS.items():
                defines = [f"-DFASTMLIP_ISA={isa}", f"-DFASTMLIP_VECTOR_BYTES={vector_bytes}"]
                units.append((f"{kernel}_{isa}", kernel, defines + flags))

        sanitize = os.environ.get("FASTMLIP_SANITIZE", "0") == "1"
        folder = f"ninja-{platform.machine()}" + ("-sanitize" if sanitize else "")
        build = ROOT / "build" / folder  # kept: self.build_temp may not be
        build.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        extra = os.environ.get("FASTMLIP_CXXFLAGS", "") + (f" {SANITIZE}" if sanitize else "")
        libraries = " ".join(f"-L{path}" for path in library_paths())
        lines = [
            f"cxx = {os.environ.get('CXX', 'g++')}",
            f"flags = {' '.join(FLAGS)} {extra}",
            "rule compile",
            "  command = $cxx -MMD -MF $out.d $flags $unit -c $in -o $out",
            "  deps = gcc",
            "  depfile = $out.d",
            "rule link",
            f"  command = $cxx -shared {extra} $in -o $out {libraries} -ltorch_cpu -ltorch -lc10",
        ]
        for unit, source, flags in units:
            lines.append(f"build {unit}.o: compile {ROOT / 'csrc' / source}.cpp")
            lines.append(f"  unit = {' '.join(flags)}")
        lines.append(f"build {target}: link {' '.join(f'{unit}.o' for unit, *_ in units)}")
        (build / "build.ninja").write_text("\n".join(lines) + "\n")
        scripts = sysconfig.get_path("scripts")
        ninja = shutil.which("ninja", path=scripts) or shutil.which("ninja")
        if ninja is None:
            raise RuntimeError("ninja is needed to build the extension: pip install ninja")
        subprocess.run([ninja], cwd=build, check=True)


setup(
    ext_modules=[Extension("fastmlip._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": NinjaBuild},
    # the extension knows torch, not Python; wheels of free-threaded Pythons cannot say so
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
