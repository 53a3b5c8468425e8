"""What kernels are compiled for, how many warps of one fit, and the vendors' peak figures.

Limits of a multiprocessor: CUDA Programming Guide, appendix on compute capabilities; a warp's
registers come in blocks of 256 from one of four files of 16,384. AMD CDNA3 instruction set guide
and LLVM's AMDGPU usage guide: a SIMD has 512 vector registers a lane, taken by eights, of which
vector and accumulation registers share one file, and runs up to 8 waves; 4 SIMDs a compute unit.

Peaks, all of vector arithmetic, without tensor or matrix cores and without sparsity; compared with
other people's copies of these sheets, not with the sheets (one has 80 and 40 TFLOP/s for B200):

- A100: NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM: 19.5 and 9.7 TFLOP/s, 2,039 GB/s;
- H100: NVIDIA H100 Tensor Core GPU data sheet, SXM: 67 and 34 TFLOP/s, 3.35 TB/s;
- B200: NVIDIA HGX B200 specifications, for eight: 600 and 296 TFLOP/s, and DGX B200 data sheet,
  64 TB/s; an eighth of each;
- MI300X: AMD Instinct MI300X data sheet: 163.4 and 81.7 TFLOP/s, 5.3 TB/s. The float32 figure takes
  two operations an instruction (packed), which the compiler does not always find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peak:
    """A GPU's peak figures by its vendor: FLOP/s in float32 and float64, and bytes/s."""

    gpu: str
    float32: float
    float64: float
    bandwidth: float

    def seconds(self, nbytes: float, flops: float, double: bool) -> float:
        """The roofline: the longer of moving the bytes and doing the arithmetic, both at peak."""
        return max(nbytes / self.bandwidth, flops / (self.float64 if double else self.float32))


@dataclass(frozen=True)
class Target:
    """A target of the compiler, and the limits of a multiprocessor (of a compute unit)."""

    name: str
    lanes: int  # of a warp
    warps: int
    programs: int
    registers: int  # of a lane, in the part of the file that one of four schedulers has
    granule: int  # registers of a lane come in this many
    most: int  # that an instruction can name
    shared: int  # bytes
    peak: Peak | None = None

    @property
    def is_nvidia(self) -> bool:
        return self.name.startswith("sm_")

    def triton(self) -> Any:
        """Triton's name of the target."""
        from triton.backends.compiler import GPUTarget

        if self.is_nvidia:
            return GPUTarget("cuda", int(self.name.removeprefix("sm_")), self.lanes)
        return GPUTarget("hip", self.name, self.lanes)

    def occupancy(self, registers: int, shared: int, num_warps: int) -> float:
        """Share of the resident warps that a kernel's resources leave room for."""
        rounded = max(-(-registers // self.granule), 1) * self.granule
        by_registers = 4 * (self.registers // rounded) // num_warps
        programs = min(self.programs, self.warps // num_warps, by_registers)
        if shared:
            programs = min(programs, self.shared // shared)
        return programs * num_warps / self.warps


def _nvidia(name: str, warps: int, programs: int, shared_kb: int, peak: Peak | None) -> Target:
    return Target(name, 32, warps, programs, 16384 // 32, 8, 255, shared_kb * 1024, peak)


def _amd(name: str, peak: Peak | None) -> Target:
    return Target(name, 64, 32, 32, 512, 8, 512, 64 * 1024, peak)


TARGETS = {
    target.name: target
    for target in (
        _nvidia("sm_80", 64, 32, 164, Peak("A100", 19.5e12, 9.7e12, 2.039e12)),
        _nvidia("sm_90", 64, 32, 228, Peak("H100", 67e12, 34e12, 3.35e12)),
        _nvidia("sm_100", 64, 32, 228, Peak("B200", 75e12, 37e12, 8e12)),
        _nvidia("sm_120", 48, 24, 100, None),
        _amd("gfx90a", None),
        _amd("gfx942", Peak("MI300X", 163.4e12, 81.7e12, 5.3e12)),
    )
}
