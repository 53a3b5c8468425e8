"""NequIP's ``InteractionBlock`` on :func:`fastmlip.ops.radial_conv`.

What takes its place is of a class derived from the host's own, with the same modules inside. On a
GPU, and under autocast, it is the host's forward, around the swapped ``TensorProductScatter``.
Otherwise:

- the radial network runs once per pair of atoms; with frozen parameters, as in a compiled model or
  after ``model.requires_grad_(False)``, inside the convolution;
- the self-connection is one linear map per type, where node attributes depend on the type alone;
- 1 / sqrt(avg_num_neighbors), where it is one number, is part of ``linear_1``; between the linear
  layers rows are in the layout that the convolution computes in;
- what depends on the edges alone, their order and pairs, is found once for all layers;
- after :mod:`fastmlip.integrations.nequip.tabulate`, a spline stands for the radial network.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fastmlip import ops
from fastmlip.integrations import linear
from fastmlip.integrations.derived import Derived, derive
from fastmlip.integrations.nequip import edges, tensor_product_scatter
from fastmlip.integrations.nequip.edges import ORDER
from fastmlip.nn.radial_spline import RadialSpline
from fastmlip.nn.tensor_product_conv import TensorProductConv
from fastmlip.problem import TensorProductProblem

HOST_ATTRIBUTES = (
    "linear_1", "linear_2", "edge_mlp", "tp_scatter", "sc", "ghost_exchange", "is_first_layer",
    "avg_num_neighbors_norm", "_get_mliap_num_local",
)  # fmt: skip
# what the first layer hands on to the last, beside the order of the edges
PAIR, RADIAL, FIRST_ROW = (f"_fastmlip_{name}" for name in ("edge_pair", "radial", "first_row"))

Data = dict[str, torch.Tensor]


class FastInteractionBlock(Derived):
    """What the derived class has in place of the host's."""

    type_embed: tuple[Any, ...]  # what node attributes are a function of the type by, or nothing
    maps: torch.nn.ModuleDict  # of linear_1, linear_2 and, folded by type, of sc
    product: TensorProductConv  # of tp_scatter, between rows in ir_mul layout
    norm_is_folded: bool
    is_last: bool
    spline: RadialSpline | None
    table_metadata: dict[str, str]

    def _get_metadata_contributions(self: Any) -> dict[str, str]:
        return self.table_metadata if self.is_last else {}  # one module may contribute a key

    @property
    def remark(self: Any) -> str:
        """For the summary."""
        if self.spline is None:
            text = "for training; requires_grad_(False): faster inference on a CPU"
            return text if _trainable(self) else ""
        error = self.table_metadata["fastmlip_table_max_force_error"]
        return f"tabulated: {self.spline.intervals} intervals, max |dF| {error} eV/Angstrom"

    def forward(self: Any, data: Data) -> Data:
        """``data`` with new node features."""
        if self.spline is not None and _trainable(self):
            raise RuntimeError(
                "a tabulated model cannot be trained, its splines would not follow: train the "
                "model that it was made of, or call model.requires_grad_(False)"
            )
        if self.spline is not None or edges.is_cpp(data["node_features"]):
            data = _forward(self, data)
        else:
            data = super().forward(data)  # type: ignore[misc]
        if self.is_last:
            for name in (ORDER, PAIR, RADIAL, FIRST_ROW):
                data.pop(name, None)
        return data


def _trainable(block: Any) -> bool:
    return any(parameter.requires_grad for parameter in block.parameters())


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    new = derive(FastInteractionBlock, old)  # children swapped later are swapped in both
    new.type_embed = _type_embed(old, model)
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
    if new.type_embed:
        new.maps["sc"] = linear.TypedLinear(old.sc)
    blocks = [m for m in model.modules() if type(m).__name__ == type(old).__name__]
    new.is_last = old is blocks[-1]
    new.spline, new.table_metadata = None, {}
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


def is_at_end(model: torch.nn.Module) -> bool:
    """Whether the last interaction block of a model is of this page, or will be."""
    blocks = [m for m in model.modules() if type(m).__name__.endswith("InteractionBlock")]
    if not blocks:
        return False
    return isinstance(blocks[-1], FastInteractionBlock) or judge(blocks[-1], model) == ""


def unsupported(module: torch.nn.Module) -> str:
    """Why an ``InteractionBlock`` cannot be swapped; empty where it can."""
    missing = [name for name in HOST_ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"an unknown version of NequIP's class, without {', '.join(missing)}"
    host: Any = module
    layers = getattr(host.edge_mlp, "mlp", None)
    if not isinstance(layers, torch.nn.Sequential) or len(layers) % 2 == 0:
        return "its radial network is not layers with activations between them"
    linears: list[Any] = list(layers)[::2]
    for layer in linears:
        if not hasattr(layer, "weight") or not hasattr(layer, "alpha"):
            return f"its radial network has a {type(layer).__name__}, not a scaled linear layer"
        if getattr(layer, "bias", None) is not None:
            return "a layer of its radial network has a bias"
    if not all(isinstance(layer, torch.nn.SiLU) for layer in list(layers)[1::2]):
        return "its radial network has activations that are not SiLU"
    if len({layer.weight.shape[1] for layer in linears[:-1]}) > 1:
        return "hidden layers of its radial network have several widths"
    return linear.unsupported(host.linear_1) or linear.unsupported(host.linear_2)


def _type_embed(block: Any, model: torch.nn.Module) -> tuple[Any, ...]:
    """The embedding that node attributes come from, in a tuple so that it does not become a child;
    nothing where the self-connection is not to be folded."""
    embeds: list[Any] = [m for m in model.modules() if type(m).__name__.endswith("NodeTypeEmbed")]
    if block.sc is None or [type(embed).__name__ for embed in embeds] != ["NodeTypeEmbed"]:
        return ()
    if getattr(embeds[0], "do_categorical_graph_field_embed", True):
        return ()
    num_types = embeds[0].embed_module.num_embeddings
    return tuple(embeds) if 2 * num_types <= block.sc.irreps_in2.dim else ()  # else it is more work


# ---------------------------------------------------------------- the forward


def _forward(block: Any, data: Data) -> Data:
    from nequip.data import AtomicDataDict

    if AtomicDataDict.LMP_MLIAP_DATA_KEY in data:
        num_local = block._get_mliap_num_local(data)
    else:
        num_local = AtomicDataDict.num_nodes(data)
    x = data["node_features"]
    if not block.is_first_layer:
        x = x[:num_local]
    sc = None if block.sc is None else self_connection(block, x, data)
    data["node_features"] = block.maps["linear_1"](x, block.linear_1)
    norm = block.avg_num_neighbors_norm
    if block.norm_is_folded:  # the field that the host leaves
        data[norm.norm_key] = norm.norm_const.expand(x.shape[0], -1)
    else:
        data = norm(data)
    if not block.is_first_layer:
        data = block.ghost_exchange(data, ghost_included=False)
    x = block.maps["linear_2"](convolution(block, data)[:num_local], block.linear_2)
    data["node_features"] = x if sc is None else x + sc
    return data


def convolution(block: Any, data: Data) -> torch.Tensor:
    """The radial network, tensor product and sum over edges, ``[N, irreps_mid.dim]``; this and
    the node features in ``ir_mul`` layout."""
    x, edge_index, embedding = data["node_features"], data["edge_index"], data["edge_embedding"]
    if ORDER not in data:
        data[ORDER] = edges.order(data, x.shape[0])
    if block.spline is not None:
        if RADIAL not in data:
            data[RADIAL], data[FIRST_ROW] = block.spline(data["normed_edge_lengths"])
    elif PAIR not in data and "pos" in data:  # without, a gradient for every edge is asked for
        data[PAIR] = ops.edge_pair(data["edge_vectors"], embedding, data[ORDER], x.shape[0])
    order, hidden = data[ORDER], None
    if block.spline is not None:
        radial, weight = data[RADIAL], block.spline.table
        pair, first_row = None, data[FIRST_ROW]
    else:
        layers = [layer.weight * layer.alpha for layer in list(block.edge_mlp.mlp)[::2]]
        radial, weight = embedding, layers.pop()
        pair, first_row = data.get(PAIR), None
        if layers:
            hidden = torch.cat([layer.flatten() for layer in layers])
    product = block.product
    return ops.radial_conv(
        x, data["edge_attrs"], radial, weight, edge_index[0], edge_index[1], product.problem,
        product.tables, pair, first_row, order, hidden,
    )  # fmt: skip


def self_connection(block: Any, x: torch.Tensor, data: Data) -> torch.Tensor:
    """``block.sc`` of the node attributes, ``[N, irreps_out.dim]``."""
    if not block.type_embed:
        return block.sc(x, data["node_attrs"][: x.shape[0]])
    attrs = block.type_embed[0].embed_module.weight
    return block.maps["sc"](x, block.sc, attrs, data["atom_types"].view(-1))
