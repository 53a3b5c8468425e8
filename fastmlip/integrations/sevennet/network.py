"""SevenNet's ``AtomGraphSequential``, a whole model: modules one after the other.

A model becomes one of a class derived from the host's own, in place, with the same modules inside;
calculators, trainers and checkpoints find what they look for. Its layers run in one forward each
(:mod:`~fastmlip.integrations.sevennet.layer`) and share what depends on the edges alone, where
every module is one whose effect on the data is known, and none has hooks.

SevenNet computes forces from gradients of edge vectors. Where its own ``force_output`` is the only
one that reads them, and makes totals of them, an edge and its reverse share the gradient of their
radial network. Gradients with respect to the edge vectors that go in or out cannot be had then:
torch says so. Every edge has its own gradient

- for virials of atoms (``use_atomic_virial``),
- where there is no ``force_output``, as in LAMMPS,
- where the edge vectors that are given require a gradient,
- with ``accelerate(model, per_edge_gradients=True)``.

In evaluation, ``force_output`` leaves nothing that a gradient of weights could be made of. Weights
are constants then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from fastmlip import ops
from fastmlip.integrations import inner, refine
from fastmlip.integrations.derived import derive_in_place, has_kernels, is_cpp
from fastmlip.integrations.forwards import package
from fastmlip.integrations.sevennet.edge_embedding import FIRST_ROW
from fastmlip.integrations.sevennet.layer import (
    InteractionLayer,
    Parts,
    Shared,
    folds_types,
    layers,
    unsupported,
)
from fastmlip.integrations.whole_model import WholeModel, begin, outdated
from fastmlip.ops.edge_order import edge_order

# modules whose effect on the data is known
KNOWN = {
    "EdgeEmbedding", "FastEdgeEmbedding", "EdgePreprocess", "OnehotEmbedding", "IrrepsLinear",
    "SelfConnectionIntro", "SelfConnectionLinearIntro", "FastIrrepsConvolution",
    "IrrepsConvolution", "SelfConnectionOutro", "EquivariantGate", "FCN_e3nn", "Rescale",
    "SpeciesWiseRescale", "ModalWiseRescale", "AtomReduce", "ForceOutput", "ForceStressOutput",
    "ForceStressOutputFromEdge", "_ModalInputPrepare",
}  # fmt: skip
FORCES = {"ForceOutput", "ForceStressOutput", "ForceStressOutputFromEdge"}
EDGE_VEC, TYPES = "edge_vec", "atom_type"
# fields that depend on single edges, as its modules leave them
OF_EDGES = ("edge_length", "edge_embedding", "edge_attr")


class Plan(NamedTuple):
    """What runs one after the other, ``reason`` empty; why nothing is in one forward otherwise."""

    reason: str
    steps: Sequence[Any]  # modules, and Parts of layers

    @property
    def layers(self) -> list[Parts]:
        return [step for step in self.steps if isinstance(step, Parts)]


class FastAtomGraphSequential(WholeModel):
    """What the derived class has in place of the host's."""

    otherwise = "module by module"

    def forward(self: Any, input: Any) -> Any:
        """``input`` with the host's fields."""
        plan = self.plan()
        given = input[EDGE_VEC] if EDGE_VEC in input else None  # noqa: SIM401 (PyG has no get)
        if self.tabulated:
            if plan.reason or given is None:
                why = plan.reason or f"there is no field {EDGE_VEC}"
                raise RuntimeError(f"a tabulated model cannot run this: {why}")
            refine.check_call(self, given)
        elif plan.reason or given is None or not has_kernels(given):
            return super().forward(input)  # type: ignore[misc]
        forces = _forces(self)
        is_total = (
            inner.kind(forces) == "ForceStressOutputFromEdge"
            and not forces.use_atomic_virial
            and forces.key_edge == self.key_grad == EDGE_VEC
        )
        pairs = is_total and not given.requires_grad and not self.per_edge_gradients
        if pairs:
            input[EDGE_VEC] = given.detach()  # which nobody else can differentiate by
        data = self._preprocess(input)
        frozen = forces is not None and not forces.training
        shared = None
        for step in plan.steps:
            if not isinstance(step, Parts):
                data = step(data)
                continue
            if shared is None:
                shared = _shared(self, data, step, pairs, frozen)
            data = step.conv.layer(step, data, shared)
        if pairs:
            data[EDGE_VEC] = given
            for name in OF_EDGES:
                if name in data:
                    data[name] = data[name].view_as(data[name])
        if FIRST_ROW in data:
            del data[FIRST_ROW]
        return data

    def plan(self: Any) -> Plan:
        """What runs, found out again after modules were changed."""
        return self.look(lambda: (_plan(self), list(self.modules())))


def _forces(network: Any) -> Any:
    last = list(network)[-1]
    return last if inner.kind(last) in FORCES else None


def _shared(network: Any, data: Any, first: Parts, pairs: bool, frozen: bool) -> Shared:
    conv = first.conv
    edge_index, num_nodes = data[conv.key_edge_idx], data[conv.key_x].shape[0]
    positions = data["pos"] if "pos" in data and not network.is_batch_data else None
    order = edge_order(edge_index[0], edge_index[1], num_nodes, positions)
    pair = types = kind = None
    first_row = None if conv.layer.spline is None else data[FIRST_ROW]
    if pairs and first_row is None and is_cpp(data[conv.key_x]):
        pair = ops.edge_pair(data[EDGE_VEC], data[conv.key_weight_input], order, num_nodes)
    if folds_types(first):
        types, kind = _types_of(data[TYPES].view(-1), first)
    return Shared(order, pair, first_row, types, kind, frozen)


def _types_of(kind: torch.Tensor, first: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    """Types that weights are read of, and which of them an atom has: on a CPU those that occur,
    elsewhere all, because the host does not wait for a GPU to say which."""
    if is_cpp(kind):
        types, kind = kind.unique(return_inverse=True)
        return types, kind
    operator = first.intro.fc_tensor_product
    return torch.arange(operator.irreps_in2.dim, device=kind.device), kind


def _plan(network: Any) -> Plan:
    row = list(network)
    if reason := outdated(network):
        return Plan(reason, ())
    found = layers(row)
    if not found:
        return Plan("it has no layers that fastmlip knows", ())
    named = [("", network), *network.named_children()]
    if reason := _unknown(network) or inner.why_not(named) or _types(row, found):
        return Plan(reason, ())
    steps, at = [], 0
    while at < len(row):
        if at not in found:
            steps.append(row[at])
            at += 1
            continue
        parts = found[at]
        if reason := unsupported(parts):
            return Plan(f"layer {len([n for n in found if n < at])}: {reason}", ())
        if parts.conv.layer is None:
            return Plan("modules were put in after the swap", ())
        steps.append(parts)
        at += len(parts)
    return Plan("", steps)


def _unknown(network: Any) -> str:
    """Which modules may do anything to the data; empty where there is none."""
    for path, module in network.named_children():
        if inner.kind(module) not in KNOWN:
            return f"{path} is a {inner.kind(module)}, whose effect on the data is not known here"
    return ""


def _types(row: Sequence[Any], found: dict[int, Parts]) -> str:
    """Why node attributes may be something else than the type; empty where they are not."""
    if len({folds_types(parts) for parts in found.values()}) > 1:
        return "its layers have several kinds of self-connections"
    first = next(iter(found))
    if not folds_types(found[first]):
        return ""
    embeddings = [m for m in row if inner.kind(m) == "OnehotEmbedding"]
    if len(embeddings) != 1 or embeddings[0] not in row[:first]:
        return "there is not one embedding of types before its layers"
    (embedding,) = embeddings
    operands = {parts.intro.key_operand for parts in found.values()}
    if embedding.key_save != TYPES or {embedding.key_additional_output} != operands:
        return "node attributes are not the types that its embedding keeps"
    return ""


def judge(module: Any, model: torch.nn.Module) -> str | None:
    """Why an ``AtomGraphSequential`` cannot be swapped, empty where it can; None for one without
    layers, such as a part of a model in LAMMPS."""
    kinds_of = {inner.kind(child) for child in module}
    has_layers = kinds_of & {"IrrepsConvolution", "FastIrrepsConvolution"}
    return _unknown(module) if has_layers else None


def parts(module: torch.nn.Module) -> Iterable[tuple[str, torch.nn.Module]]:
    """``module`` and those in it, without fastmlip's own, which are there where a part was swapped
    before the whole."""
    return (
        (path, part) for path, part in module.named_modules() if package(type(part)) != "fastmlip"
    )


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """``old`` itself, of the fast class."""
    network: Any = old
    derive_in_place(FastAtomGraphSequential, network)
    begin(network)
    for parts in layers(list(network)).values():
        if not unsupported(parts):
            parts.conv.layer = InteractionLayer(parts)
    return network
