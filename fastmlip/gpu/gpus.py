"""The GPUs that whole models are modelled for, beyond their peaks: multiprocessors and latencies.

What each number is, and where it is from; none was measured here:

- multiprocessors (compute units of AMD): NVIDIA A100, H100 and Blackwell architecture papers (SXM
  parts), AMD CDNA 3 white paper;
- clock: the one at which these give the vendor's float32 peak (two operations for each of
  128 lanes, 64 of an A100);
- H200: NVIDIA H200 Tensor Core GPU data sheet, 4.8 TB/s, otherwise an H100;
- a round of memory, from the warp's load to its next instruction: 600 cycles. Pointer chasing finds
  fewer on an idle A100 and H100 (some 470 in memory, 260 in the L2 cache: Luo et al.,
  arXiv:2402.13499, quoted from memory), a busy memory takes longer. The same is **assumed** for
  B200 and MI300X;
- between two kernels of a stream: 0.9 us, of a CUDA graph: 0.5 us. From NVIDIA's article "Getting
  Started with CUDA Graphs" (2019, V100): kernels of 2.9 us each took 3.8 us and 3.4 us. **Assumed**
  to hold for all of these;
- the host, in eager mode: **assumed** to be 5 us for an operator of torch that launches something,
  1 us for a view, and for an operator of fastmlip 15 us and 10 us for each of its launches.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastmlip.gpu.targets import TARGETS, Peak, Target

ROUND = 600  # cycles
GAP_STREAM, GAP_GRAPH = 0.9e-6, 0.5e-6  # seconds between two kernels
HOST_OPERATOR, HOST_VIEW = 5e-6, 1e-6  # seconds of the host
HOST_CUSTOM, HOST_LAUNCH = 15e-6, 10e-6


@dataclass(frozen=True)
class Gpu:
    """A GPU: its peaks, what its code is compiled for, and how many multiprocessors it has."""

    peak: Peak
    target: Target
    processors: int
    lanes: int = 128  # float32 operations that a multiprocessor starts in a cycle

    @property
    def name(self) -> str:
        return self.peak.gpu

    @property
    def clock(self) -> float:
        """Hz."""
        return self.peak.float32 / (2 * self.lanes * self.processors)

    @property
    def round(self) -> float:
        """Seconds from a load to the instruction that waits for it."""
        return ROUND / self.clock


def _gpu(target: str, processors: int, peak: Peak | None = None, lanes: int = 128) -> Gpu:
    found = peak or TARGETS[target].peak
    assert found is not None
    return Gpu(found, TARGETS[target], processors, lanes)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("sm_80", 108, lanes=64),
        _gpu("sm_90", 132),
        _gpu("sm_90", 132, Peak("H200", 67e12, 34e12, 4.8e12)),
        _gpu("sm_100", 148),
        _gpu("gfx942", 304),
    )
}
