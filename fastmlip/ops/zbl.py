r"""ZBL screened nuclear repulsion, summed per receiver.

For atom i, over the edges of length r with receiver ``edge_index[0, e] = i`` and sender j::

    E_i    = sum over e of phi_ij(r)
    phi(r) = prefactor * Z_i Z_j / r * psi(a r) * u(r / r_cut)
    a      = (Z_i^0.23 + Z_j^0.23) / 0.46850
    psi(x) = 0.18175 e^(-3.19980 x) + 0.50986 e^(-0.94229 x)
           + 0.28022 e^(-0.40290 x) + 0.02817 e^(-0.20162 x)
    u(t)   = 1 - (p+1)(p+2)/2 t^p + p(p+2) t^(p+1) - p(p+1)/2 t^(p+2)   for t < 1, else 0

r is in Angstrom. With edges in both directions each carries half of the pair: prefactor is half of
e^2 / (4 pi epsilon_0), in energy times Angstrom, and sets the unit of energy.

Below ``R_MIN`` phi stays at its value there, large and finite, and its derivatives are zero: atoms
in one place get no force from each other, and nothing that is not finite.

phi acts on each edge by itself, so two operators close the ladder of derivatives. With order n and
weights w per edge (1 where not given)::

    zbl(w, b, n)_i       = b_i + sum over e of w_e phi^(n)(r_e)        per node
    zbl_backward(g, w, n)_e = w_e g_i phi^(n)(r_e)                     per edge, g per node
    d zbl(w, b, n) by r  = zbl_backward(k, w, n + 1)                   for a gradient k per node
    d zbl_backward(g, w, n) by g, by r = zbl(k w, 0, n), zbl_backward(g, k w, n + 1)   k per edge

up to n = 3, where b are energies that ZBL is added to. Where a derivative follows, zbl keeps
phi^(n + 1) of each edge for it, which shares the exponentials. Everything runs in float64 whatever
the dtype of the lengths. A node's edges are added in the order they come in: the result is the same
bits in every run and for any number of threads.

Sources of the constants: the screening function and its length are the universal ones of J. F.
Ziegler, J. P. Biersack and U. Littmark, "The Stopping and Range of Ions in Matter" (1985), with the
digits of LAMMPS, ``src/pair_zbl_const.h`` and https://docs.lammps.org/pair_zbl.html; 0.46850 A is
LAMMPS' rounding of 0.8854 Bohr radii (0.46853 A). :data:`COULOMB` is ``qqr2e`` of LAMMPS' ``units
metal`` and ``units real`` (``src/update.cpp``); it agrees with CODATA 2018 (14.39964548 eV A and
332.0637133 kcal/mol A) to 4e-8. The envelope u is that of Gasteiger, Gross and Guennemann,
"Directional Message Passing for Molecular Graphs", arXiv:2003.03123.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastmlip import backend
from fastmlip.ops.edge_order import assert_in_range
from fastmlip.ops.ladder import Rung, eager, ladder, on_cpu

Tensor = torch.Tensor

COULOMB = {"metal": 14.399645, "real": 332.06371}  # e^2 / (4 pi epsilon_0): eV A, kcal/mol A
SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
SCREENING_LENGTH = 0.46850  # Angstrom
SCREENING_POWER = 0.23
R_MIN = 1e-4  # Angstrom: 10 fm, about where two heavy nuclei touch
MAX_ORDER = 3


def zbl(
    edge_length: Tensor,
    edge_index: Tensor,
    atom_types: Tensor,
    atomic_numbers: Tensor,
    prefactor: Tensor,
    cutoff: Tensor | None = None,
    p: float = 6.0,
    num_nodes: int | None = None,
    base: Tensor | None = None,
    normed_length: Tensor | None = None,
) -> Tensor:
    """Energies of this page in float64, differentiable in ``edge_length`` and ``base``.

    ``[num_nodes]``, or ``[num_nodes, 1]`` where ``edge_length`` is a column.

    Args:
        edge_length: ``[E]`` or ``[E, 1]``, float32 or float64, in Angstrom.
        edge_index: ``[2, E]``, int32 or int64, receivers first; in any order, fastest when sorted
            by receiver.
        atom_types: ``[N]`` or ``[N, 1]``, int32 or int64.
        atomic_numbers: Z of each type, ``[T]``, a floating dtype.
        prefactor: one number, half of ``COULOMB[units]`` where edges come in both directions.
        cutoff: cutoff radii ``[T, T]`` by (type of receiver, type of sender); or None with
            ``normed_length``.
        p: exponent of the envelope, at least 2.
        num_nodes: how many of the N atoms receive, where others are ghosts; default all.
        base: energies that these are added to, of the result's shape, float64.
        normed_length: in place of ``cutoff``, for edges that have their cutoff already:
            ``edge_length / cutoff`` of each, in the shape and dtype of ``edge_length``. Derivatives
            take it for proportional to ``edge_length``.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: an index or a type out of range (on a GPU when the device synchronises).
    """
    which = backend.choose(edge_length)
    if num_nodes is None:
        num_nodes = atom_types.numel()
    tensors = (edge_length, edge_index, atom_types, atomic_numbers, prefactor)
    operands = (*tensors, cutoff, p, num_nodes, base, normed_length)
    constants = (atomic_numbers, prefactor, cutoff, normed_length)
    if (
        which == "cpp"
        and eager()
        and on_cpu(*tensors, cutoff, base, normed_length)
        and not any([t is not None and t.requires_grad for t in constants])  # noqa: C419 (faster)
    ):
        try:
            return _call(_CPP, *operands)  # checks what it takes
        except RuntimeError:
            _check(*operands)  # has the better error for what it finds
            raise
    _check(*operands)
    if which == "reference":
        _assert_indices(edge_index, atom_types, atomic_numbers, num_nodes)
        return reference(*operands)
    return _call(_CPP if which == "cpp" else _TRITON, *operands)


def _call(
    calls, edge_length, edge_index, atom_types, atomic_numbers, prefactor, cutoff, p, num_nodes,
    base, normed_length,
) -> Tensor:  # fmt: skip
    if cutoff is not None and cutoff.dtype is torch.float32:
        cutoff = cutoff.double()
    if edge_index.dtype is torch.int32:
        edge_index = edge_index.long()
    if atom_types.dtype is torch.int32:
        atom_types = atom_types.long()
    keep = edge_length.requires_grad and torch.is_grad_enabled()
    return calls["nodes"](
        edge_length, None, base, normed_length, cutoff, edge_index, atom_types, atomic_numbers,
        prefactor, float(p), 0, num_nodes, keep,
    )[0]  # fmt: skip


def _check(
    edge_length, edge_index, atom_types, atomic_numbers, prefactor, cutoff, p, num_nodes, base,
    normed_length,
) -> None:  # fmt: skip
    if (cutoff is None) == (normed_length is None):
        raise ValueError(
            "cutoff: expected radii, or normed_length in their place, got "
            + ("neither" if cutoff is None else "both")
        )
    for name, value, size in (("edge_length", edge_length, "E"), ("atom_types", atom_types, "N")):
        if value.dim() != 1 and not (value.dim() == 2 and value.shape[1] == 1):
            raise ValueError(
                f"{name}: expected shape [{size}] or [{size}, 1], got {tuple(value.shape)}"
            )
    if edge_length.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"edge_length: expected float32 or float64, got {edge_length.dtype}")
    edges = edge_length.shape[0]
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.shape[1] != edges:
        raise ValueError(
            f"edge_index: expected shape [2, E = {edges}], got {tuple(edge_index.shape)}"
        )
    if atomic_numbers.dim() != 1:
        raise ValueError(f"atomic_numbers: expected shape [T], got {tuple(atomic_numbers.shape)}")
    for name, value in (("edge_index", edge_index), ("atom_types", atom_types)):
        if value.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name}: expected int32 or int64, got {value.dtype}")
    types = atomic_numbers.shape[0]
    if prefactor.numel() != 1:
        raise ValueError(f"prefactor: expected one number, got shape {tuple(prefactor.shape)}")
    if normed_length is not None and (
        normed_length.shape != edge_length.shape or normed_length.dtype != edge_length.dtype
    ):
        raise ValueError(
            f"normed_length: expected shape {tuple(edge_length.shape)} in {edge_length.dtype} as "
            f"edge_length, got {tuple(normed_length.shape)} in {normed_length.dtype}"
        )
    if cutoff is not None and tuple(cutoff.shape) != (types, types):
        raise ValueError(
            f"cutoff: expected shape [T, T] with T = {types}, got {tuple(cutoff.shape)}"
        )
    for name, value in (
        ("edge_index", edge_index), ("atom_types", atom_types), ("cutoff", cutoff),
        ("atomic_numbers", atomic_numbers), ("prefactor", prefactor),
        ("normed_length", normed_length),
    ):  # fmt: skip
        if value is not None and value.device != edge_length.device:
            raise ValueError(
                f"{name}: expected device {edge_length.device} as edge_length has, got "
                f"{value.device}"
            )
    for name, value in (
        ("atomic_numbers", atomic_numbers), ("prefactor", prefactor), ("cutoff", cutoff),
        ("normed_length", normed_length),
    ):  # fmt: skip
        if value is None:
            continue
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: expected float32 or float64, got {value.dtype}")
        if value.requires_grad:
            raise ValueError(f"{name}: requires a gradient, which ZBL does not give; detach it")
    if not 0 <= num_nodes <= atom_types.shape[0]:
        raise ValueError(
            f"num_nodes: expected 0 to N = {atom_types.shape[0]}, as atom_types has, got "
            f"{num_nodes}"
        )
    if not p >= 2:
        raise ValueError(f"p: expected a number of at least 2, got {p}")
    if base is not None:
        shape = (num_nodes, *edge_length.shape[1:])
        if base.shape != shape or base.device != edge_length.device:
            raise ValueError(
                f"base: expected shape {shape} on {edge_length.device}, got {tuple(base.shape)} on "
                f"{base.device}"
            )
        if base.dtype is not torch.float64:
            raise TypeError(f"base: expected float64, got {base.dtype}")


# ---------------------------------------------------------------- reference, in plain PyTorch


def reference(
    edge_length: Tensor,
    edge_index: Tensor,
    atom_types: Tensor,
    atomic_numbers: Tensor,
    prefactor: Tensor,
    cutoff: Tensor | None = None,
    p: float = 6.0,
    num_nodes: int | None = None,
    base: Tensor | None = None,
    normed_length: Tensor | None = None,
) -> Tensor:
    """The formula of this page; differentiable by torch's own autograd to any order."""
    num_nodes = atom_types.shape[0] if num_nodes is None else num_nodes
    shape = (num_nodes, *edge_length.shape[1:])
    edge_length, atom_types = edge_length.reshape(-1), atom_types.reshape(-1)
    r = edge_length.double()
    r = torch.where(r < R_MIN, R_MIN, r)  # versions of torch differ on clamp's slope at R_MIN
    a, charges, s = _pairs(
        edge_length, edge_index, atom_types, atomic_numbers, prefactor, cutoff, normed_length
    )
    psi = sum(c * torch.exp(-d * a * r) for c, d in SCREENING)
    t = (r * s).clamp(max=1.0)
    envelope = 1 - (p + 1) * (p + 2) / 2 * t**p
    envelope = envelope + p * (p + 2) * t ** (p + 1) - p * (p + 1) / 2 * t ** (p + 2)
    phi = torch.where(t >= 1, 0.0, charges / r * psi * envelope)
    start = phi.new_zeros(num_nodes) if base is None else base.reshape(-1)
    return start.index_add(0, edge_index[0].long(), phi).view(shape)


def _pairs(edge_length, edge_index, atom_types, atomic_numbers, prefactor, cutoff, normed_length):
    """Per edge: a in 1/A, prefactor Z_i Z_j, and 1/cutoff."""
    types = atom_types.long()[edge_index.long()]
    z = atomic_numbers.double()[types]
    a = (z[0] ** SCREENING_POWER + z[1] ** SCREENING_POWER) / SCREENING_LENGTH
    if normed_length is None:
        s = 1 / cutoff.double()[types[0], types[1]]
    else:
        s = normed_length.reshape(-1).double() / edge_length.detach().double().clamp(min=R_MIN)
    return a, prefactor.double() * z[0] * z[1], s


# ---------------------------------------------------------------- the Triton operators


def _assert_indices(edge_index, atom_types, atomic_numbers, num_nodes) -> None:
    edge_dst, edge_src = edge_index.unbind()
    assert_in_range(edge_dst, "edge_index[0]", num_nodes, "num_nodes")
    assert_in_range(edge_src, "edge_index[1]", atom_types.shape[0], "atom_types.size(0)")
    assert_in_range(atom_types, "atom_types", atomic_numbers.shape[0], "atomic_numbers.size(0)")


@backend.triton_op("fastmlip::zbl", mutates_args=())
def _nodes(
    edge_length: Tensor, weight: Tensor | None, base: Tensor | None,
    normed_length: Tensor | None, cutoff: Tensor | None, edge_index: Tensor, atom_types: Tensor,
    atomic_numbers: Tensor, prefactor: Tensor, p: float, order: int, num_nodes: int, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``zbl(weight, base, order)`` of this page in float64, a column where edge_length is one;
    weight as edge_length. Nothing is kept: the kernel of a derivative makes phi again."""
    from fastmlip.kernels import zbl as kernels

    _assert_indices(edge_index, atom_types, atomic_numbers, num_nodes)
    energies = kernels.nodes(
        edge_length, weight, normed_length, cutoff, edge_index, atom_types, atomic_numbers,
        prefactor, p, order, num_nodes,
    )  # fmt: skip
    return energies if base is None else base + energies, energies.new_empty(0)


@backend.triton_op("fastmlip::zbl_backward", mutates_args=())
def _edges(
    grad: Tensor, edge_length: Tensor, weight: Tensor | None, phi: Tensor | None,
    normed_length: Tensor | None, cutoff: Tensor | None, edge_index: Tensor, atom_types: Tensor,
    atomic_numbers: Tensor, prefactor: Tensor, p: float, order: int,
) -> Tensor:  # fmt: skip
    """``zbl_backward(grad, weight, order)`` of this page, shaped like edge_length; grad is shaped
    like energies."""
    from fastmlip.kernels import zbl as kernels

    _assert_indices(edge_index, atom_types, atomic_numbers, grad.shape[0])
    return kernels.edges(
        grad, edge_length, weight, normed_length, cutoff, edge_index, atom_types, atomic_numbers,
        prefactor, p, order,
    )  # fmt: skip


# ---------------------------------------------------------------- derivatives of both


def _save_nodes(ctx, inputs, output) -> None:
    length, weight, _, *rest, ctx.p, ctx.order, _, ctx.keep = inputs
    phi = output[1]
    ctx.mark_non_differentiable(phi)
    ctx.set_materialize_grads(False)  # a gradient of `phi` would be as large
    ctx.save_for_backward(length, weight, phi, *rest)


def _save_edges(ctx, inputs, output) -> None:
    grad, length, weight, _, *rest, ctx.p, ctx.order = inputs
    ctx.save_for_backward(grad, length, weight, *rest)


def _next(order: int) -> int:
    if order == MAX_ORDER:
        raise NotImplementedError(f"ZBL has no derivatives beyond the order {MAX_ORDER}")
    return order + 1


def _nodes_vjp(rungs, ctx, k, _):
    length, weight, phi, *rest = ctx.saved_tensors
    edges, by_length, by_weight = rungs["edges"], None, None
    if ctx.needs_input_grad[0]:
        kept = phi if ctx.keep else None
        by_length = edges(k, length, weight, kept, *rest, ctx.p, _next(ctx.order))
    if ctx.needs_input_grad[1]:
        by_weight = edges(k, length, None, None, *rest, ctx.p, ctx.order)
    return by_length, by_weight, k if ctx.needs_input_grad[2] else None, *(None,) * 10


def _edges_vjp(rungs, ctx, k):
    grad, length, weight, *rest = ctx.saved_tensors
    nodes, edges = rungs["nodes"], rungs["edges"]
    both = k if weight is None else k * weight
    by_grad = by_length = by_weight = phi = None
    to_grad, to_length, to_weight = ctx.needs_input_grad[:3]
    if to_grad:
        keep = to_length and ctx.order < MAX_ORDER
        sizes = (ctx.p, ctx.order, grad.shape[0], keep)
        by_grad, phi = nodes(length, both, None, *rest, *sizes)
        phi = phi if keep else None
    if to_length:
        by_length = edges(grad, length, both, phi, *rest, ctx.p, _next(ctx.order))
    if to_weight:
        by_weight = edges(grad, length, k, None, *rest, ctx.p, ctx.order)
    return by_grad, by_length, by_weight, *(None,) * 9


def _ladder(suffix: str) -> dict[str, Callable[..., Any]]:
    operators = torch.ops.fastmlip
    nodes, edges = (getattr(operators, name + suffix).default for name in ("zbl", "zbl_backward"))
    return ladder(
        {
            "nodes": Rung(nodes, _save_nodes, _nodes_vjp),
            "edges": Rung(edges, _save_edges, _edges_vjp),
        }
    )


_TRITON = _CPP = _ladder("")

if backend.load_extension() is None:
    _CPP = _ladder("_cpu")

    @torch.library.register_fake("fastmlip::zbl_cpu")
    def _(
        edge_length, weight, base, normed_length, cutoff, edge_index, types, numbers, prefactor, p,
        order, nodes, keep,
    ):  # fmt: skip
        def empty(*shape):
            return edge_length.new_empty(shape, dtype=torch.float64)

        return empty(nodes, *edge_length.shape[1:]), empty(edge_length.shape[0] if keep else 0)

    @torch.library.register_fake("fastmlip::zbl_backward_cpu")
    def _(
        grad, edge_length, weight, phi, normed_length, cutoff, edge_index, types, numbers,
        prefactor, p, order,
    ):  # fmt: skip
        return torch.empty_like(edge_length, memory_format=torch.contiguous_format)
