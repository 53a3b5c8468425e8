"""MACE's ``MACE`` and ``ScaleShiftMACE``, whole models.

A model becomes one of a class derived from the host's own, in place, with the same modules inside:
calculators, trainers and checkpoints find what they look for. Its layers run in one forward each
(:mod:`~fastmlip.integrations.mace.layer`) and share what depends on the edges alone.

Forces are gradients of positions, to which an edge and its reverse both contribute: they share one
gradient of their radial network. Every edge has its own

- where forces of edges or virials of atoms are asked for (``compute_edge_forces``,
  ``compute_atomic_stresses``),
- where the ``shifts`` or ``unit_shifts`` that are given require a gradient,
- with ``accelerate(model, per_edge_gradients=True)``.

In LAMMPS (ML-IAP), where edge vectors are given, MACE's own forward runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from fastmlip import ops
from fastmlip.integrations import inner, refine
from fastmlip.integrations.derived import derive_in_place, has_kernels, is_cpp
from fastmlip.integrations.harmonics import unsupported_harmonics
from fastmlip.integrations.host import all_but
from fastmlip.integrations.mace.layer import Edges, Layer, Parts, Shared, unsupported
from fastmlip.integrations.whole_model import WholeModel, begin, outdated
from fastmlip.nn.radial_spline import RadialSpline
from fastmlip.ops.edge_order import edge_order
from fastmlip.spherical_harmonics import tables

Tensor = torch.Tensor
READOUTS = {"LinearReadoutBlock", "NonLinearReadoutBlock", "NonLinearBiasReadoutBlock"}
CALLED = ("atomic_energies_fn", "pair_repulsion_fn", "readouts", "scale_shift")


class Plan(NamedTuple):
    """The layers that run, ``reason`` empty; why the host's forward runs otherwise."""

    reason: str
    layers: list[Parts]


class FastMACE(WholeModel):
    """What the derived class has in place of the host's."""

    fast_layers: torch.nn.ModuleList
    harmonics: Tensor  # tables

    otherwise = "MACE's own forward runs"

    def forward(
        self: Any,
        data: dict[str, Tensor],
        training: bool = False,
        compute_force: bool = True,
        compute_virials: bool = False,
        compute_stress: bool = False,
        compute_displacement: bool = False,
        compute_hessian: bool = False,
        compute_edge_forces: bool = False,
        compute_atomic_stresses: bool = False,
        lammps_mliap: bool = False,
    ) -> dict[str, Tensor | None]:
        """The host's outputs."""
        asked = Asked(
            training, compute_force, compute_virials, compute_stress, compute_displacement,
            compute_hessian, compute_edge_forces, compute_atomic_stresses, lammps_mliap,
        )  # fmt: skip
        why = self.plan().reason or _cannot(self, data, asked)
        if self.tabulated:
            if why:
                raise RuntimeError(f"a tabulated model cannot run this: {why}")
            refine.check_call(self, data["positions"])
        if why:
            return super().forward(data, *asked)  # type: ignore[misc]
        return _forward(self, data, asked)

    def plan(self: Any) -> Plan:
        """What runs, found out again after modules were changed."""
        return self.look(lambda: (_plan(self), list(self.modules())))


class Asked(NamedTuple):
    """The arguments of the host's forward after ``data``, in its order."""

    training: bool
    compute_force: bool
    compute_virials: bool
    compute_stress: bool
    compute_displacement: bool
    compute_hessian: bool
    compute_edge_forces: bool
    compute_atomic_stresses: bool
    lammps_mliap: bool


def _cannot(model: Any, data: dict[str, Tensor], asked: Asked) -> str:
    """Why this call runs in the host's forward; empty where it need not."""
    if asked.lammps_mliap:
        return "edge vectors are given, as in LAMMPS"
    attrs = data["node_attrs"]
    if not has_kernels(data["positions"]) or attrs.dtype != data["positions"].dtype:
        return "neither the C++ nor the Triton operators run on its positions"
    one_hot = attrs.detach()
    if attrs.requires_grad or not bool(
        ((one_hot == 0) | (one_hot == 1)).all() & (one_hot.sum(1) == 1).all()
    ):
        return "node_attrs are not one type each"
    return ""


def _forward(model: Any, data: dict[str, Tensor], asked: Asked) -> dict[str, Tensor | None]:
    from mace.modules.utils import get_atomic_virials_stresses, get_outputs, prepare_graph

    of_atoms_asked = asked.compute_atomic_stresses and hasattr(model, "scale_shift")
    of_edges_asked = asked.compute_edge_forces or of_atoms_asked
    given = (data[name] for name in ("shifts", "unit_shifts") if name in data)
    own_gradients = (
        of_edges_asked or model.per_edge_gradients or any(t.requires_grad for t in given)
    )
    graph = prepare_graph(
        data, compute_virials=asked.compute_virials, compute_stress=asked.compute_stress,
        compute_displacement=asked.compute_displacement,
    )  # fmt: skip
    features = _features(model, data, graph, asked, not own_gradients)
    out = _energies(model, data, graph, features)
    differentiated = out.get("interaction_energy", out["energy"])
    forces, virials, stress, hessian, edge_forces = get_outputs(
        energy=differentiated, positions=graph.positions, displacement=graph.displacement,
        vectors=graph.vectors, cell=graph.cell, training=asked.training,
        compute_force=asked.compute_force, compute_virials=asked.compute_virials,
        compute_stress=asked.compute_stress, compute_hessian=asked.compute_hessian,
        compute_edge_forces=of_edges_asked,
    )  # fmt: skip
    atomic_virials = atomic_stresses = None
    if asked.compute_atomic_stresses and edge_forces is not None:
        atomic_virials, atomic_stresses = get_atomic_virials_stresses(
            edge_forces=edge_forces, edge_index=data["edge_index"], vectors=graph.vectors,
            num_atoms=len(graph.positions), batch=data["batch"], cell=graph.cell,
        )  # fmt: skip
    return {
        **out, "forces": forces, "edge_forces": edge_forces, "virials": virials, "stress": stress,
        "atomic_virials": atomic_virials, "atomic_stresses": atomic_stresses,
        "displacement": graph.displacement, "hessian": hessian,
        "node_feats": torch.cat(features, -1),
    }  # fmt: skip


def _features(
    model: Any, data: dict[str, Tensor], graph: Any, asked: Asked, pairs: bool
) -> list[Tensor]:
    """Node features after each layer."""
    attrs, (sender, receiver) = data["node_attrs"], data["edge_index"]
    differentiates = asked.compute_force or asked.compute_virials or asked.compute_stress
    keeps_graph = asked.training or asked.compute_hessian or not pairs
    edges, first_row = _edges(model, data, graph)
    order = edge_order(receiver, sender, len(attrs))
    pair = None
    if pairs and first_row is None and is_cpp(attrs):
        pair = ops.edge_pair(graph.vectors, edges.radial, order, len(attrs))
    types, kind = attrs.argmax(1).unique(return_inverse=True)
    shared = Shared(types, kind, order, pair, first_row, differentiates and not keeps_graph)
    of_types = attrs.new_zeros(len(types), attrs.shape[1]).scatter(1, types.unsqueeze(1), 1.0)
    x, features = shared.taken(model.node_embedding.linear(of_types)), []
    for n, (layer, parts) in enumerate(zip(model.fast_layers, model.plan().layers, strict=True)):
        x = layer(parts, x, n == 0, edges, shared)
        features.append(x)
    return features


def _energies(
    model: Any, data: dict[str, Tensor], graph: Any, features: list[Tensor]
) -> dict[str, Tensor]:
    """The host's outputs that are energies; the interaction's is the one to be differentiated,
    where the model has it."""
    attrs, batch, dtype = data["node_attrs"], data["batch"], graph.vectors.dtype
    atoms, heads = graph.num_atoms_arange, graph.node_heads.long()

    def total(of_atoms: Tensor) -> Tensor:
        return of_atoms.new_zeros(graph.num_graphs).index_add(0, batch, of_atoms)

    node_e0 = model.atomic_energies_fn(attrs)[atoms, heads]
    pair_energy = torch.zeros_like(node_e0)
    if hasattr(model, "pair_repulsion"):
        pair_energy = model.pair_repulsion_fn(
            graph.lengths, attrs, data["edge_index"], model.atomic_numbers
        )
    read = features[-1:] if len(model.readouts) == 1 else features
    read_out = [
        readout(x, heads)[atoms, heads] for readout, x in zip(model.readouts, read, strict=True)
    ]
    e0 = total(node_e0).to(dtype)
    if hasattr(model, "scale_shift"):
        of_atoms = model.scale_shift(torch.stack([pair_energy, *read_out]).sum(0), heads)
        interaction = total(of_atoms)
        return {
            "energy": e0 + interaction,
            "node_energy": node_e0.clone().double() + of_atoms.clone().double(),
            "interaction_energy": interaction,
        }
    contributions = torch.stack([e0, *(total(part) for part in (pair_energy, *read_out))], -1)
    return {
        "energy": contributions.sum(-1),
        "node_energy": torch.stack([node_e0, pair_energy, *read_out], -1).sum(-1),
        "contributions": contributions,
    }


def _edges(model: Any, data: dict[str, Tensor], graph: Any) -> tuple[Edges, Tensor | None]:
    """What the convolutions take of edges, and the first rows of splines."""
    embedding, vectors = model.radial_embedding, graph.vectors
    dtype, device = vectors.dtype, vectors.device
    is_fused = fuses_basis(embedding)
    r_max = float(model.r_max)
    roots = torch.zeros(0, dtype=torch.float64, device=device)
    factor, power = 1.0, 6
    if is_fused:
        r_max, power = float(embedding.cutoff_fn.r_max), int(embedding.cutoff_fn.p)
        roots = embedding.bessel_fn.bessel_weights.double() * (r_max / math.pi)
        factor = float(embedding.bessel_fn.prefactor) * math.pi / r_max
    found = ops.edge_embedding(
        vectors, roots, torch.full((1,), 1 / r_max, dtype=torch.float64, device=device),
        l_max=model.spherical_harmonics._lmax, p=power, factor=factor,
        dtype=dtype, tables=model.harmonics,
    )  # fmt: skip
    index = data["edge_index"]
    radial = found.embedding
    if not is_fused:
        radial, _ = embedding(graph.lengths, data["node_attrs"], index, model.atomic_numbers)
    spline: RadialSpline | None = model.fast_layers[0].spline
    if spline is None:
        return Edges(index, found.attrs, radial, radial[:, :0]), None
    place, first_row = spline(found.norm.squeeze(1))
    return Edges(index, found.attrs, radial, place), first_row


def fuses_basis(embedding: Any) -> bool:
    """Whether the radial basis is that of :func:`fastmlip.ops.edge_embedding`, and nothing was put
    into the host's modules for it, whose forwards do not run then."""
    known = {"bessel_fn": "BesselBasis", "cutoff_fn": "PolynomialCutoff"}
    return (
        not hasattr(embedding, "distance_transform")
        and all(inner.kind(getattr(embedding, name)) == kind for name, kind in known.items())
        and int(embedding.cutoff_fn.p) >= 2
        and not inner.why_not(embedding.named_modules())
    )


def _plan(model: Any) -> Plan:
    if reason := outdated(model):
        return Plan(reason, [])
    if model.tabulated and not fuses_basis(model.radial_embedding):
        return Plan("something was put into its radial embedding", [])
    if reason := unsupported_model(model):
        return Plan(reason, [])
    return Plan("", _parts(model))


def passed_by(model: Any) -> Iterable[tuple[str, torch.nn.Module]]:
    """``model`` and the modules in it whose forward will not run any more."""
    called = CALLED if fuses_basis(model.radial_embedding) else (*CALLED, "radial_embedding")
    return all_but(*called)(model)


def _parts(model: Any) -> list[Parts]:
    return [Parts(*pair) for pair in zip(model.interactions, model.products, strict=True)]


def unsupported_model(model: Any) -> str:
    """Why a ``MACE`` or ``ScaleShiftMACE`` cannot be run in one forward; empty where it can."""
    if hasattr(model, "joint_embedding"):
        return "it has a joint_embedding"
    embedding = model.radial_embedding
    if inner.kind(embedding) != "RadialEmbeddingBlock":
        return f"its radial_embedding is a {inner.kind(embedding)}"
    if not getattr(embedding, "apply_cutoff", True):
        return "its cutoff multiplies the weights of edges, not the radial basis"
    if inner.kind(model.node_embedding.linear) != "Linear":
        return f"its node_embedding has a {inner.kind(model.node_embedding.linear)}, not a Linear"
    if reason := unsupported_harmonics(model.spherical_harmonics):
        return f"its spherical_harmonics: {reason}"
    if len(model.readouts) not in (1, len(model.interactions)):
        return f"it has {len(model.readouts)} readouts for {len(model.interactions)} layers"
    for n, readout in enumerate(model.readouts):
        if inner.kind(readout) not in READOUTS:
            return f"its readouts.{n} is a {inner.kind(readout)}"
    for n, parts in enumerate(_parts(model)):
        if reason := unsupported(parts):
            return f"layer {n}: {reason}"
    named = ("node_embedding", "spherical_harmonics", "interactions", "products")
    return inner.why_not([(name, getattr(model, name)) for name in named])


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """``old`` itself, of the fast class."""
    network: Any = old
    derive_in_place(FastMACE, network)
    like = network.r_max
    network.fast_layers = torch.nn.ModuleList(Layer(parts) for parts in _parts(network))
    network.fast_layers.to(like).train(network.training)
    harmonics = network.spherical_harmonics
    made = tables(harmonics._lmax, harmonics.normalization).to(like.device)
    network.register_buffer("harmonics", made, persistent=False)
    begin(network)
    return network
