"""Other implementations of the tensor product convolution, where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from fastmlip.problem import TensorProductProblem
from fastmlip.testing import Case

Tensor = torch.Tensor
Convolution = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def convolutions(device: str) -> dict[str, Callable[[Case, str], Convolution]]:
    """Makers of the peers that can run on ``device``, by name."""
    found = {"e3nn": e3nn}
    if importlib.util.find_spec("cuequivariance_torch") is not None:
        found["cuequivariance"] = cuequivariance
    if device != "cpu" and importlib.util.find_spec("openequivariance") is not None:
        found["openequivariance"] = openequivariance
    if device != "cpu" and importlib.util.find_spec("LunaEquivariance") is not None:
        found["LunaEquivariance"] = luna
    return found


def e3nn(case: Case, device: str) -> Convolution:
    """e3nn's ``TensorProduct`` for every edge, then ``index_add``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # that of its tables; NequIP sets float64
    product = case.e3nn().to(device)
    torch.set_default_dtype(before)

    def convolution(x, edge_attr, edge_weight, edge_dst, edge_src):
        out = x.new_zeros(x.shape[0], product.irreps_out.dim)
        return out.index_add(0, edge_dst, product(x[edge_src], edge_attr, edge_weight))

    return convolution


def cuequivariance(case: Case, device: str) -> Convolution:
    """cuequivariance-torch's ``SegmentedPolynomial`` of the same paths and layout, which gathers
    and sums itself. ``naive`` is its method in plain PyTorch, the one there is for a CPU; a GPU has
    ``uniform_1d`` where its kernels are installed."""
    import cuequivariance as cue
    import cuequivariance_torch as cuet

    # weight [u], x [u, i], edge_attr [j], out [u, k] with coefficients [i, j, k]
    product = cue.SegmentedTensorProduct.from_subscripts("u_ui_j_uk+ijk")
    problem = case.problem
    blocks = _blocks(problem)
    segments = [[(p.mul,) for p in problem.paths], blocks[0], [(m * d,) for m, d in blocks[1]]]
    for operand, sizes in enumerate([*segments, blocks[2]]):
        for size in sizes:
            product.add_segment(operand, size)
    for number, (p, ins) in enumerate(zip(problem.paths, problem.instructions, strict=True)):
        dense = torch.zeros(p.d1, p.d2, p.d3, dtype=torch.float64)
        for m1, m2, m3, value in p.cg:
            dense[m1, m2, m3] = value
        product.add_path(number, ins.i_in1, ins.i_in2, ins.i_out, c=dense.numpy())
    kernels = device != "cpu" and importlib.util.find_spec("cuequivariance_ops_torch") is not None
    method = "uniform_1d" if kernels else "naive"
    polynomial = cue.SegmentedPolynomial.eval_last_operand(product)
    run = cuet.SegmentedPolynomial(polynomial, method=method, math_dtype=torch.float32).to(device)

    def convolution(x, edge_attr, edge_weight, edge_dst, edge_src):
        like = x.new_empty(x.shape[0], 1)  # only its first dimension is read
        (out,) = run([edge_weight, x, edge_attr], {1: edge_src}, {0: like}, {0: edge_dst})
        return out

    return convolution


def _blocks(problem: TensorProductProblem) -> list[list[tuple[int, int]]]:
    """``(mul, dim)`` of each block of the three irreps."""
    from e3nn.o3 import Irreps

    sides = (problem.irreps_in1, problem.irreps_in2, problem.irreps_out)
    return [[(block.mul, block.ir.dim) for block in Irreps(side)] for side in sides]


def openequivariance(case: Case, device: str) -> Convolution:
    """OpenEquivariance's fused convolution, the deterministic one, on edges sorted by receiver."""
    import openequivariance as oeq
    from e3nn.o3 import Irreps

    *irreps, instructions = case.arguments()
    problem = oeq.TPProblem(
        *map(Irreps, irreps), instructions, shared_weights=False, internal_weights=False
    )
    run = oeq.TensorProductConv(problem, deterministic=True)
    orders: dict[Tensor, Tensor] = {}  # by identity: made once for a graph, before it is timed

    def convolution(x, edge_attr, edge_weight, edge_dst, edge_src):
        if edge_src not in orders:
            orders[edge_src] = edge_src.argsort(stable=True)
        return run(x, edge_attr, edge_weight, edge_dst, edge_src, orders[edge_src])

    return convolution


def luna(case: Case, device: str) -> Convolution:
    """LunaEquivariance's fused convolution, on the graph that it prepares."""
    from e3nn.o3 import Irreps
    from LunaEquivariance import TensorProductConv

    *irreps, instructions = case.arguments()
    run = TensorProductConv(
        *map(Irreps, irreps), instructions, shared_weights=False, internal_weights=False,
        dtype=torch.float32,
    ).to(device)  # fmt: skip
    graphs: dict[Tensor, Any] = {}  # by identity: made once for a graph, before it is timed

    def convolution(x, edge_attr, edge_weight, edge_dst, edge_src):
        if edge_src not in graphs:
            graphs[edge_src] = run.create_graph(edge_src, edge_dst, x.shape[0])
        return run(x, edge_attr, edge_weight, graph=graphs[edge_src])

    return convolution
