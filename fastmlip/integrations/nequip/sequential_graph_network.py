"""NequIP's ``SequentialGraphNetwork``, the modules of a model one after the other.

It runs as the host's own does. It owns what its layers share in one call, such as the order of the
edges (:class:`~fastmlip.integrations.nequip.edges.Shared`): nothing of it comes in from another
model, and nothing goes out. Layers share only where every module is one whose effect on the data is
known, and none has hooks. Then

- node attributes are a function of the type, where a ``NodeTypeEmbed`` makes them: layers fold
  their self-connection by type;
- edges stay the same from layer to layer: their order and pairs are found once;
- no module reads the gradients of single edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fastmlip.integrations import inner
from fastmlip.integrations.derived import Derived, derive
from fastmlip.integrations.nequip import interaction_block
from fastmlip.integrations.nequip.edges import SHARED, Shared
from fastmlip.integrations.nequip.forwards import objection

ROWS = {"Sequential", "SequentialGraphNetwork", "FastSequentialGraphNetwork"}
BLOCKS = {"InteractionBlock", "FastInteractionBlock"}
# what may stand before the last layer: the host's own, of code that is known, and ours
HOSTS = {
    "NodeTypeEmbed", "SphericalHarmonicEdgeAttrs", "EdgeLengthNormalizer",
    "BesselEdgeLengthEncoding", "ApplyFactor", "ConvNetLayer",
}  # fmt: skip
OURS = {"ComputedAtEnd", "FastEdgeLengthNormalizer", "FastBesselEdgeLengthEncoding"}
# and behind it, where node and edge attributes are read
BEHIND = {
    "ScalarMLP", "FastScalarMLP", "AtomwiseLinear", "AtomwiseReduce", "PerTypeScaleShift",
    "FastPerTypeScaleShift", "ZBL", "FastZBL", "LennardJones", "SimpleLennardJones", "ApplyFactor",
    "SaveForOutput",
}  # fmt: skip
# fields that depend on single edges, in the order in which they are computed
OF_EDGES = (
    "edge_vectors", "edge_lengths", "normed_edge_lengths", "edge_attrs", "edge_cutoff",
    "edge_embedding",
)  # fmt: skip

NORM = "feature_norm_factor"

Data = dict[str, Any]


class FastSequentialGraphNetwork(Derived):
    """What the derived class has in place of the host's.

    Attributes:
        per_edge_gradients: whether gradients with respect to edge vectors are to be every edge's
            own while a ``ForceStressOutput`` computes forces. Where it is off, an edge and its
            reverse share the gradient of their radial network then, on which forces and the total
            stress do not depend.
    """

    per_edge_gradients: bool
    look: inner.Look
    tabulated: list[str]  # kinds of what was before the layers when they were tabulated

    @property
    def remark(self: Any) -> str:
        """For the summary."""
        reason, *_ = self.what_is_shared()
        if reason:
            return f"every layer by itself: {reason}"
        return "per_edge_gradients" if self.per_edge_gradients else ""

    def forward(self: Any, data: Data, forces_only: bool = False) -> Data:
        """``data`` after all modules.

        Args:
            forces_only: the caller is the only one that differentiates the energy, and does so with
                respect to positions and to a strain of all of them, or to edge vectors, of whose
                gradients it reads differences between an edge and its reverse.
        """
        if SHARED in data:
            return super().forward(data)  # type: ignore[misc]
        reason, path, unseen = self.what_is_shared()
        if unseen:
            raise RuntimeError(f"a tabulated model cannot run this: {unseen}")
        if reason or NORM in data:  # a factor of the caller's, which every layer reads
            return super().forward(data)  # type: ignore[misc]
        pairs = forces_only and not self.per_edge_gradients
        shared = Shared(self.get_submodule(path) if path else None, pairs)
        data = super().forward({**data, SHARED: shared})  # type: ignore[misc]
        del data[SHARED]
        if pairs:
            # the energy does not depend on what goes out: asked for their gradients, torch says so
            for name in OF_EDGES:
                if name in data:
                    data[name] = data[name].view_as(data[name])
        return data

    @torch.compiler.assume_constant_result  # it looks at modules alone
    def what_is_shared(self: Any) -> tuple[str, str, str]:
        """Why layers must share nothing, empty where they may; the path of the module that node
        attributes of all layers are a function of the type by, empty where they may be anything;
        and what the tables of tabulated layers know nothing of, empty where there is nothing."""
        return self.look(lambda: _look(self))


def table_parts(network: Any) -> list[tuple[str, Any]]:
    """What tables are made of: modules up to the last layer, and the table of types."""
    parts: list[tuple[str, Any]] = []
    for path, module, kind in _to_last_layer(_row(network)):
        parts.append((path, module))
        if kind == "NodeTypeEmbed":
            parts.append((f"{path}.embed_module", module.embed_module))
    return parts


def unseen_by_tables(network: Any) -> str:
    """What tabulated layers of ``network`` know nothing of, empty where there is nothing."""
    return _unknown(_to_last_layer(_row(network))) or inner.why_not(table_parts(network))


def _row(network: Any) -> list[tuple[str, Any, str]]:
    return [(path, module, inner.kind(module)) for path, module in _flat(network)]


def _to_last_layer(row: list[tuple[str, Any, str]]) -> list[tuple[str, Any, str]]:
    return row[: max((at + 1 for at, (*_, kind) in enumerate(row) if kind == "ConvNetLayer"),
                     default=0)]  # fmt: skip


def _look(network: Any) -> tuple[tuple[str, str, str], list[torch.nn.Module]]:
    """What :meth:`what_is_shared` says, and the modules that this depends on."""
    row = _row(network)
    parts, altered = [(path, module) for path, module, _ in row], ""
    for path, module, kind in row:
        if kind == "ConvNetLayer":
            parts.append((f"{path}.conv", module.conv))
            parts += [(f"{path}.conv.{n}", m) for n, m in interaction_block.parts(module.conv)]
            if isinstance(module.conv, interaction_block.FastInteractionBlock):
                altered = altered or interaction_block.altered_parts(module.conv)
        elif kind == "NodeTypeEmbed":
            parts.append((f"{path}.embed_module", module.embed_module))
    reason, unseen = _unknown(row) or inner.why_not(parts) or altered, ""
    if network.tabulated:
        now = [type(module).__name__ for _, module in table_parts(network)]
        changed = "modules before its layers were changed" if now != network.tabulated else ""
        unseen = unseen_by_tables(network) or changed
    return (reason, _embedding(row), unseen), [network, *(module for _, module in parts)]


def _unknown(row: list[tuple[str, Any, str]]) -> str:
    layers = [at for at, (_, _, kind) in enumerate(row) if kind == "ConvNetLayer"]
    for at, (path, module, kind) in enumerate(row):
        is_before = bool(layers) and at <= layers[-1]
        known = kind in ROWS or kind in (HOSTS | OURS if is_before else BEHIND)
        if kind == "ApplyFactor" and is_before:
            known = at < layers[0] and module.out_field == "edge_embedding"
        elif kind == "ConvNetLayer":
            known = inner.kind(module.conv) in BLOCKS
        if not known:
            return f"{path} is a {kind}, whose effect on the data is not known here"
        if kind in HOSTS and (why := objection([("", module)], keeps_hooks=True)):
            return f"{path}: {why}"
    return ""


def _embedding(row: list[tuple[str, Any, str]]) -> str:
    kinds = [kind for _, _, kind in row]
    if kinds.count("NodeTypeEmbed") != 1:
        return ""
    at = kinds.index("NodeTypeEmbed")
    path, embed, _ = row[at]
    table = embed.embed_module
    by_type = not getattr(embed, "do_categorical_graph_field_embed", True)
    plain = inner.kind(table) == "Embedding" and table.max_norm is None
    return path if by_type and plain and "ConvNetLayer" not in kinds[:at] else ""


def _flat(row: torch.nn.Module, path: str = "") -> Iterator[tuple[str, Any]]:
    """The modules of a sequence with their paths, those of sequences in it behind these."""
    for name, module in row.named_children():
        yield path + name, module
        if inner.kind(module) in ROWS:
            yield from _flat(module, f"{path}{name}.")


def judge(module: torch.nn.Module, model: torch.nn.Module) -> str | None:
    """Empty for a ``SequentialGraphNetwork`` with layers that are swapped; None for any other."""
    for part in module.modules():
        if isinstance(part, interaction_block.FastInteractionBlock):
            return ""
        if type(part).__name__ == "InteractionBlock" and interaction_block.judge(part, model) == "":
            return ""
    return None


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    new = derive(FastSequentialGraphNetwork, old)
    new.per_edge_gradients, new.look, new.tabulated = False, inner.Look(), []
    return new
