"""One launch compiled ahead of time, and what its code says of itself."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastmlip.gpu.targets import Target

ATOMICS = re.compile(r"\b(atom|red)\.|_atomic_")

# an instruction's first word -> its kind; the first that matches
KINDS = {
    "atomic": r"(ATOM|RED)[A-Z]*\b|(global|flat|buffer|ds)_atomic_",
    "local": r"(LDL|STL)\b|scratch_",
    "load": r"LD(G)?\b|global_load|buffer_load|flat_load|s_load|s_buffer_load",
    "store": r"ST(G)?\b|global_store|buffer_store|flat_store",
    "shared": r"(LDS|STS)\b|ds_(read|write|load|store)",
    "shuffle": r"SHFL\b|ds_(bpermute|swizzle|permute)|v_\w*(_dpp|permlane)|v_readlane",
    "fma": r"[FD]FMA2?\b|v_(pk_)?(fma|fmac|mad|mac)_(f32|f64)",
    "float": r"(FADD|FMUL|FADD2|FMUL2|DADD|DMUL|MUFU|FSETP|DSETP|FSEL)\b|v_\w*_f(32|64)\b",
    "branch": r"(BRA|EXIT|BSYNC|BSSY|CALL|RET|WARPSYNC)\b|s_c?branch|s_endpgm|s_setpc",
}
_KINDS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
KIND_NAMES = (*KINDS, "other")


@dataclass(frozen=True)
class Code:
    """A compiled launch."""

    target: Target
    num_warps: int
    shared: int  # bytes of a program
    ttir: str
    assembly: str  # PTX or AMDGCN
    cubin: bytes | None

    @cached_property
    def _listing(self) -> tuple[str, str]:
        """Disassembly, and the tool's account of resources; AMD's assembly is both."""
        if self.cubin is None:
            return self.assembly, self.assembly
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(self.cubin)
            return _nvidia_tool("nvdisasm", "-c", path), _nvidia_tool(
                "cuobjdump", "-res-usage", path
            )

    def _number(self, name: str) -> int:
        found = re.search(rf"{re.escape(name)}\s*(\d+)", self._listing[1])
        if found is None:
            raise RuntimeError(
                f"no {name!r} in the compiler's account of a {self.target.name} kernel"
            )
        return int(found[1])

    @cached_property
    def registers(self) -> int:
        """Vector registers of a lane."""
        return self._number("REG:" if self.cubin else ".vgpr_count:")

    @cached_property
    def spilled(self) -> int:
        """Bytes of a lane that live in memory for want of registers."""
        if self.cubin:
            return self._number("STACK:") + self._number("LOCAL:")
        return self._number(".private_segment_fixed_size:")

    @property
    def occupancy(self) -> float:
        return self.target.occupancy(self.registers, self.shared, self.num_warps)

    @cached_property
    def instructions(self) -> Counter[str]:
        """Instructions of the whole kernel by kind (``KIND_NAMES``)."""
        return Counter(kind(text) for _, text in self.lines())

    @cached_property
    def loop(self) -> Counter[str]:
        """Those of its longest loop, which walks edges or types; none where it was written without
        one (compilers make small loops of their own, for lanes that part)."""
        begin, end = self.longest_loop()
        lines = [text for _, text in self.lines()][begin : end + 1]
        return Counter(map(kind, lines)) if end > begin else Counter()

    def longest_loop(self) -> tuple[int, int]:
        """Its first and its last instruction; (0, 0) where there is none."""
        if "scf.for" not in self.ttir and "scf.while" not in self.ttir:
            return 0, 0
        lines = list(self.lines())
        begins = {label: n for n, (labels, _) in enumerate(lines) for label in labels}
        longest: tuple[int, int] = (0, 0)
        for n, (_, text) in enumerate(lines):
            to = re.search(r"BRA.*`\((\.L_x_\d+)\)|s_c?branch\w*\s+(\.L\w+)", text)
            start = begins.get(to[1] or to[2], n) if to else n
            if n - start > longest[1] - longest[0]:
                longest = (start, n)
        return longest

    @property
    def atomics(self) -> int:
        return len(ATOMICS.findall(self.assembly)) + self.instructions["atomic"]

    def lines(self) -> Iterator[tuple[list[str], str]]:
        """Instructions, each with the labels that stand before it."""
        labels: list[str] = []
        for raw in self._listing[0].splitlines():
            line = (
                re.sub(r"/\*.*?\*/", "", raw).split(";" if self.cubin is None else "//")[0].strip()
            )
            if label := re.fullmatch(r"(\.L\w+):", line):
                labels.append(label[1])
            elif not line or line.startswith((".", "@!PT ", "s_code_end")) or line.endswith(":"):
                continue
            else:
                yield labels, line
                labels = []


def kind(instruction: str) -> str:
    """One of ``KIND_NAMES``."""
    text = re.sub(r"^(@!?U?P\w+\s+|\{\s*)", "", instruction)
    return next((name for name, at in _KINDS.items() if at.match(text)), "other")


def _nvidia_tool(name: str, *arguments: Any) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    done = subprocess.run([tool, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.strip()}")
    return done.stdout


def compiled(call: Any, target: Target) -> Code:
    """Compile a recorded launch as the launch itself would, Triton choosing signature, attributes
    and options from the operands (their addresses too; those of meta tensors are 0)."""
    import triton
    from triton.compiler import ASTSource

    options, signature, constants, attributes = variant(call, target)
    source = ASTSource(call.kernel, signature, constants, attributes)
    done = triton.compile(source, target=target.triton(), options=options.__dict__)
    text = done.asm["ptx" if target.is_nvidia else "amdgcn"]
    return Code(
        target, options.num_warps, done.metadata.shared, done.asm["ttir"], text,
        done.asm.get("cubin"),
    )  # fmt: skip


def variant(
    call: Any, target: Target
) -> tuple[Any, dict[str, Any], dict[Any, Any], dict[Any, Any]]:
    """Options, signature, constants and attributes that a launch takes: of those that differ in any
    of these, each compiles a variant of the kernel. Found by the same steps as Triton's
    ``JITFunction.run``."""
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel, backend = call.kernel, make_backend(target.triton())
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    more = {"num_warps": max(call.lanes // target.lanes, 1), "num_stages": 1}
    bound, specialization, options = bind(*call.operands, **call.constants, **more)
    packed = kernel._pack_args(backend, {**call.constants, **more}, bound, specialization, options)
    return packed
