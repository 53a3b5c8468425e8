"""NequIP's ``InteractionBlock`` on :func:`fastmlip.ops.radial_conv`.

What takes its place is of a class derived from the host's own, with the same modules inside. Under
autocast it is the host's forward, around the swapped ``TensorProductScatter``. Otherwise:

- on a CPU the radial network runs once per pair of atoms; with frozen parameters, as in a compiled
  model or after ``model.requires_grad_(False)``, inside the convolution;
- the self-connection is one linear map per type, where node attributes depend on the type alone;
- 1 / sqrt(avg_num_neighbors), where it is one number, is part of ``linear_1``; between the linear
  layers rows are in the layout that the convolution computes in;
- what depends on the edges alone, their order and pairs, is found once for all layers
  (:mod:`~fastmlip.integrations.nequip.sequential_graph_network`);
- after :mod:`fastmlip.integrations.nequip.tabulate`, a spline stands for the radial network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from fastmlip import ops
from fastmlip.integrations import inner, linear, refine
from fastmlip.integrations.derived import Derived, derive, has_kernels, is_cpp
from fastmlip.integrations.nequip import edges, tensor_product_scatter
from fastmlip.nn.radial_spline import RadialSpline
from fastmlip.nn.tensor_product_conv import TensorProductConv
from fastmlip.problem import TensorProductProblem

HOST_ATTRIBUTES = (
    "linear_1", "linear_2", "edge_mlp", "tp_scatter", "sc", "ghost_exchange", "is_first_layer",
    "avg_num_neighbors_norm", "_get_mliap_num_local",
)  # fmt: skip
# classes of the modules whose forward is written again here
PASSED_BY = {
    "linear_1": "Linear", "linear_2": "Linear", "edge_mlp": "ScalarMLPFunction",
    "sc": "FullyConnectedTensorProduct", "avg_num_neighbors_norm": "AvgNumNeighborsNorm",
}  # fmt: skip

Data = dict[str, torch.Tensor]


class FastInteractionBlock(Derived):
    """What the derived class has in place of the host's."""

    maps: torch.nn.ModuleDict  # of linear_1, linear_2 and, folded by type, of sc
    product: TensorProductConv  # of tp_scatter, between rows in ir_mul layout
    norm_is_folded: bool
    spline: RadialSpline | None
    table_metadata: dict[str, str]
    look: inner.Look
    tabulated: list[str]  # kinds of the modules that its table was made of
    refusals: list[Any]  # handles of hooks, of the last block of a tabulated model
    is_named_in_metadata: bool  # one module may contribute a key

    def _get_metadata_contributions(self: Any) -> dict[str, str]:
        return self.table_metadata if self.is_named_in_metadata else {}

    @property
    def remark(self: Any) -> str:
        """For the summary."""
        if self.spline is None and (altered := self.altered()):
            return f"NequIP's own forward runs: {altered}"
        if self.spline is None:
            text = "for training; requires_grad_(False): faster inference on a CPU"
            return text if _trainable(self) else ""
        return refine.remark(self.table_metadata)

    def forward(self: Any, data: Data) -> Data:
        """``data`` with new node features."""
        x = data["node_features"]
        if self.spline is not None:
            refine.check_call(self, x)
        # layers that share something were looked at before
        altered = "" if edges.SHARED in data else self.altered()
        if self.spline is not None and altered:
            raise RuntimeError(f"a tabulated model cannot run this: {altered}")
        if self.spline is not None or (has_kernels(x) and not altered):
            return _forward(self, data)
        return super().forward(data)  # type: ignore[misc]

    @torch.compiler.assume_constant_result
    def altered(self: Any) -> str:
        """What was put inside after the swap, such as a hook or an adapter, and needs the host's
        forward to run; empty where there is nothing."""
        return self.look(lambda: (altered_parts(self), [self, *(m for _, m in parts(self))]))


def altered_parts(block: Any) -> str:
    """What was put into a swapped block and its own forward does not run; empty where there is
    nothing."""
    if block.spline is not None and table_kinds(block) != block.tabulated:
        return "modules that its table and folded weights were made of were changed"
    return unsupported_parts(block)


def table_kinds(block: Any) -> list[str]:
    """Kinds of the modules that a table and folded weights are made of."""
    return [type(module).__name__ for name, module in parts(block) if name != "ghost_exchange"]


def _trainable(block: Any) -> bool:
    return any(parameter.requires_grad for parameter in block.parameters())


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    new = derive(FastInteractionBlock, old)  # children swapped later are swapped in both
    host: Any = old
    problem = TensorProductProblem.from_e3nn(host.tp_scatter.tp)
    problem = dataclasses.replace(problem, layout="ir_mul")
    new.product = TensorProductConv.from_problem(problem)
    norm = host.avg_num_neighbors_norm
    new.norm_is_folded = getattr(norm, "norm_shortcut", False)
    factor = float(norm.norm_const) if new.norm_is_folded else 1.0
    first = linear.FoldedLinear(host.linear_1, factor, layout_out="ir_mul")
    second = linear.FoldedLinear(host.linear_2, irreps_in=problem.irreps_out, layout_in="ir_mul")
    new.maps = torch.nn.ModuleDict({"linear_1": first, "linear_2": second})
    if host.sc is not None:
        new.maps["sc"] = linear.TypedLinear(host.sc)
    new.spline, new.table_metadata, new.is_named_in_metadata = None, {}, False
    new.look, new.refusals, new.tabulated = inner.Look(), [], []
    return new


def judge(module: Any, model: torch.nn.Module) -> str | None:
    """Why an ``InteractionBlock`` cannot be swapped, empty where it can; None where its tensor
    product cannot, the row of which says why."""
    product: Any = getattr(module, "tp_scatter", None)
    if not isinstance(product, tensor_product_scatter.FastTensorProductScatter):
        known = type(product).__name__ == "TensorProductScatter"
        if not known or tensor_product_scatter.unsupported(product):
            return None
    return unsupported(module)


def unsupported(module: torch.nn.Module) -> str:
    """Why an ``InteractionBlock`` cannot be swapped; empty where it can."""
    missing = [name for name in HOST_ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"an unknown version of NequIP's class, without {', '.join(missing)}"
    host: Any = module
    if reason := unsupported_parts(host):
        return reason
    linears = list(host.edge_mlp.mlp)[::2]
    if len({layer.weight.shape[1] for layer in linears[:-1]}) > 1:
        return "hidden layers of its radial network have several widths"
    return linear.unsupported(host.linear_1) or linear.unsupported(host.linear_2)


def unsupported_parts(block: Any) -> str:
    """Why modules inside cannot be passed by; empty where they can."""
    for name, known in PASSED_BY.items():
        module = getattr(block, name)
        if module is not None and inner.kind(module) != known:
            return f"its {name} is a {inner.kind(module)}, not a {known}"
    layers = getattr(block.edge_mlp, "mlp", None)
    if not isinstance(layers, torch.nn.Sequential) or len(layers) % 2 == 0:
        return "its radial network is not layers with activations between them"
    for layer in list(layers)[::2]:
        if inner.kind(layer) != "ScalarLinearLayer":
            return f"its radial network has a {type(layer).__name__}, not a ScalarLinearLayer"
        if getattr(layer, "bias", None) is not None:
            return "a layer of its radial network has a bias"
    if not all(type(layer) is torch.nn.SiLU for layer in list(layers)[1::2]):
        return "its radial network has activations that are not SiLU"
    return inner.why_not(parts(block))


def parts(block: Any) -> Iterator[tuple[str, Any]]:
    """Modules inside with their names: those passed by, and those that a hook could turn into
    something else."""
    for name in (*PASSED_BY, "ghost_exchange", "tp_scatter"):
        module = getattr(block, name, None)
        if module is not None:
            yield name, module
    mlp = getattr(getattr(block, "edge_mlp", None), "mlp", None)
    for name, module in [] if mlp is None else mlp.named_modules(prefix="edge_mlp.mlp"):
        yield name, module
    if hasattr(block.tp_scatter, "tp"):
        yield "tp_scatter.tp", block.tp_scatter.tp


# ---------------------------------------------------------------- the forward


def _forward(block: Any, data: Data) -> Data:
    from nequip.data import AtomicDataDict

    x, has_ghosts = data["node_features"], AtomicDataDict.LMP_MLIAP_DATA_KEY in data
    num_local = block._get_mliap_num_local(data) if has_ghosts else None
    if has_ghosts and not block.is_first_layer:
        x = x[:num_local]
    sc = None if block.sc is None else self_connection(block, x, data)
    data["node_features"] = block.maps["linear_1"](x, block.linear_1)
    norm = block.avg_num_neighbors_norm
    if block.norm_is_folded:  # the field that the host leaves
        # a network whose layers share something was given none
        given = None if edges.SHARED in data else data.get(norm.norm_key)
        if given is not None and given.size(0) == x.shape[0]:
            data["node_features"] = data["node_features"] * (given / norm.norm_const)
        else:
            data[norm.norm_key] = norm.norm_const.expand(x.shape[0], -1)
    else:
        data = norm(data)
    if not block.is_first_layer:
        data = block.ghost_exchange(data, ghost_included=False)
    x = convolution(block, data)
    x = block.maps["linear_2"](x[:num_local] if has_ghosts else x, block.linear_2)
    data["node_features"] = x if sc is None else x + sc
    return data


def convolution(block: Any, data: Data) -> torch.Tensor:
    """The radial network, tensor product and sum over edges, ``[N, irreps_mid.dim]``; this and
    the node features in ``ir_mul`` layout."""
    x, edge_index, embedding = data["node_features"], data["edge_index"], data["edge_embedding"]
    common = edges.shared(data)
    order, pair, first_row, hidden = edges.order(data, x.shape[0]), None, None, None
    if block.spline is not None:
        if common.radial is None:
            common.radial = block.spline(data["normed_edge_lengths"])
        radial, first_row = common.radial
        weight = block.spline.table
    else:
        if common.pairs and common.pair is None and is_cpp(x):
            common.pair = ops.edge_pair(data["edge_vectors"], embedding, order, x.shape[0])
        pair = common.pair
        layers = [layer.weight * layer.alpha for layer in list(block.edge_mlp.mlp)[::2]]
        radial, weight = embedding, layers.pop()
        if layers:
            hidden = torch.cat([layer.flatten() for layer in layers])
    product = block.product
    return ops.radial_conv(
        x, data["edge_attrs"], radial, weight, edge_index[0], edge_index[1], product.problem,
        product.tables, pair, first_row, order, hidden,
    )  # fmt: skip


def self_connection(block: Any, x: torch.Tensor, data: Data) -> torch.Tensor:
    """``block.sc`` of the node attributes, ``[N, irreps_out.dim]``."""
    common = edges.shared(data)
    if not folds(block, common.type_embed):
        return block.sc(x, data["node_attrs"][: x.shape[0]])
    if common.types is None:
        common.types = data["atom_types"].view(-1)
    attrs = common.type_embed.embed_module.weight
    return block.maps["sc"](x, block.sc, attrs, common.types)


def folds(block: Any, embed: Any) -> bool:
    """Whether the self-connection is folded by the types that ``embed`` knows; not where that is
    more work."""
    if embed is None or block.sc is None:
        return False
    return 2 * embed.embed_module.num_embeddings <= block.maps["sc"].num_attrs
