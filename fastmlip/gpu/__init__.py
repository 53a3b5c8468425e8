"""GPU kernels looked at without a GPU: compiled ahead of time, disassembled, modelled."""
