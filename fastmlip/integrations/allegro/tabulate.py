"""Tables in an Allegro model, for every ordered pair of types, refined until forces agree."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch

from fastmlip.integrations import inner, mlps
from fastmlip.integrations.allegro import channels
from fastmlip.integrations.allegro.layers import FastAllegro, projection_kinds
from fastmlip.integrations.allegro.tabulated_embed import InTable, TabulatedEmbed
from fastmlip.integrations.allegro.tensor_embed import FastTensorEmbed
from fastmlip.integrations.nequip.models import host_model
from fastmlip.integrations.nequip.tabulate import tolerance
from fastmlip.integrations.probes import types_of
from fastmlip.integrations.refine import LARGE, ROUNDINGS, refine, refuse_states
from fastmlip.nn.radial_spline import RadialSpline
from fastmlip.ops._edge_embedding_reference import radial as bessel_embedding

Tensor = torch.Tensor
LARGEST = 2**30  # bytes of tables: more is a mistake, or a model of many elements
# modules behind the layers, which read nothing that the tables leave out
BEHIND = {
    "ScalarMLP", "FastScalarMLP", "EdgewiseReduce", "AtomwiseReduce", "PerTypeScaleShift",
    "FastPerTypeScaleShift", "ZBL", "FastZBL", "AddRadialCutoffToData", "SaveForOutput",
    "SimpleLennardJones", "LennardJones", "ApplyFactor",
}  # fmt: skip


class Chain(NamedTuple):
    """What tables take the place of, in the order of the model, and the layers behind it."""

    norm: Any
    radial: Any  # TwoBodyBesselScalarEmbed's modules, or a TwoBodySplineScalarEmbed
    mlp: Any
    embed: Any
    layers: Any


def has_tables(model: torch.nn.Module) -> bool:
    """Whether it has layers that are swapped."""
    return any(isinstance(module, FastAllegro) for module in model.modules())


def tabulate_(
    model: Any, tol: float | None = None, structures: Iterable[Any] | None = None
) -> None:
    """Tabulate an accelerated model in place; :func:`fastmlip.tabulate` describes it."""
    tol = tolerance(tol)
    row, chain = _find(model)
    type_names = model.metadata["type_names"].split(" ")
    frames = None if structures is None else list(structures)
    types = list(range(len(type_names)))
    if frames is not None:
        types = sorted({t for numbers in types_of(frames, type_names) for t in numbers})
    pairs = list(product(types, types))
    table = TabulatedEmbed(chain.embed, chain.norm, chain.layers, pairs, len(type_names))
    table.to(next(chain.layers.parameters()).device)
    networks = _Networks(chain)
    functions = [partial(networks.values, pair) for pair in pairs]
    widths = _widths(chain)
    dtype = chain.embed._output_dtype
    model.requires_grad_(False).eval()
    names = {id(module): name for name, module in row.named_children()}
    places = {part: names[id(part)] for part in chain[:-1]}

    def fit(intervals: int) -> None:
        size = len(pairs) * intervals * sum(widths) * torch.finfo(dtype).bits // 8
        if size > LARGEST:
            raise ValueError(
                f"model: tables of {len(pairs)} pairs of types with {intervals} intervals would "
                f"take {size / 2**30:.1f} GiB: give structures that have the types in use alone, "
                "or a larger tol"
            )
        coefficients = [RadialSpline.fit(function, intervals) for function in functions]
        table.put(torch.stack(coefficients), widths)
        for part, name in places.items():
            setattr(row, name, table if part is chain.embed else InTable(part))

    try:
        # every layer multiplies features by an environment: rounding adds up
        roundings = ROUNDINGS * (1 + len(chain.layers.tps))
        found = refine(host_model(model), fit, tol, frames, types, roundings, LARGE)
    except BaseException:
        for part, name in places.items():
            setattr(row, name, part)
        raise
    table.table_metadata = found.metadata(tol, list(_errors(table, functions)))
    table.train(model.training)
    chain.layers.look = inner.Look()
    chain.layers.tabulated = projection_kinds(chain.layers)
    refuse_states(model)


def _find(model: torch.nn.Module) -> tuple[torch.nn.Module, Chain]:
    """The row of modules that has the layers, and those that tables take the place of.

    Raises:
        ValueError: they are not what this page knows.
    """
    found = [m for m in model.modules() if isinstance(m, FastAllegro)]
    if len(found) != 1:
        raise ValueError(
            f"model: it has {len(found)} modules of Allegro's layers that fastmlip accelerates, "
            "expected 1"
        )
    for row in model.modules():
        parts = list(row) if isinstance(row, torch.nn.Sequential) else []
        at = next((i for i, part in enumerate(parts) if part is found[0]), None)
        if at is None:
            continue
        if any(isinstance(part, TabulatedEmbed) for part in parts):
            raise ValueError("model: it is tabulated already; tabulate the model it was made of")
        if at != len(Chain._fields) - 1:
            raise ValueError(
                f"model: it cannot be tabulated: there are {at} modules before its layers, not a "
                "length normaliser, a scalar embedding, its MLP and a tensor embedding"
            )
        chain = Chain(*parts[: at + 1])
        if reason := _unknown(chain, parts[at + 1 :]):
            raise ValueError(f"model: it cannot be tabulated: {reason}")
        return row, chain
    raise ValueError("model: it cannot be tabulated: its layers are not in a sequence of modules")


def _unknown(chain: Chain, behind: Sequence[torch.nn.Module]) -> str:
    """Why tables cannot take the place of the chain; empty where they can."""
    radial, mlp, embed = chain.radial, chain.mlp, chain.embed
    kind = inner.kind(embed)
    if not isinstance(embed, FastTensorEmbed):
        return f"its tensor embedding is a {kind}, which fastmlip does not accelerate"
    if inner.kind(chain.norm) not in ("EdgeLengthNormalizer", "FastEdgeLengthNormalizer"):
        return f"its length normaliser is a {inner.kind(chain.norm)}"
    if inner.kind(mlp) not in ("ScalarMLP", "FastScalarMLP"):
        return f"the MLP of its scalar embedding is a {inner.kind(mlp)}"
    field = chain.embed.scalar_embedding_in_field
    if not mlp.field == mlp.out_field == chain.layers.scalar_in_field == field:
        return "its scalar embedding does not go to the tensor embedding and the layers alone"
    if inner.kind(radial) not in ("TwoBodySplineScalarEmbed", "SequentialGraphNetwork"):
        return f"its scalar embedding is a {inner.kind(radial)}"
    if isinstance(radial, torch.nn.Sequential):
        kinds = [inner.kind(part) for part in radial]
        if kinds != ["FastBesselEdgeLengthEncoding", "ProductTypeEmbedding"]:
            return f"its scalar embedding is made of {', '.join(kinds)}"
    for part in behind:
        if inner.kind(part) not in BEHIND:
            return f"behind its layers is a {inner.kind(part)}, which may read what is tabulated"
    for name, part in zip(Chain._fields[:-1], chain[:-1], strict=True):
        if reason := inner.why_not(part.named_modules(prefix=name)):
            return reason
    return ""


def _widths(chain: Chain) -> tuple[int, int, int]:
    """Columns of the scalars, of the first environment's weights, of the tensor features'."""
    layers, embed = chain.layers, chain.embed
    return (
        layers.num_scalar_features,
        layers._env_weighter.weight_numel,
        embed._edge_weighter.weight_numel,
    )


class _Networks:
    """The modules that tables take the place of, copied, in float64 on the CPU."""

    def __init__(self, chain: Chain) -> None:
        parts = (chain.radial, chain.mlp, chain.embed.env_embed_linear)
        self.radial, self.mlp, self.embed, self.projection = (
            copy.deepcopy(part).double().cpu()
            for part in (*parts, chain.layers.first_layer_env_embed_projection)
        )
        self.scalars = chain.layers.num_scalar_features
        self.of_env = channels.irreps_of(chain.layers._env_weighter)
        self.of_features = channels.irreps_of(chain.embed._edge_weighter)

    def values(self, pair: tuple[int, int], x: Tensor) -> Tensor:
        """What is tabulated of a pair of types, ``[n, columns]``, of the normalised distances
        ``[n]``."""
        data = {
            "normed_edge_lengths": x.reshape(-1, 1),
            "atom_types": torch.tensor(pair),
            "edge_index": torch.tensor([[0], [1]]).repeat(1, x.shape[0]),
        }
        embedding = self.mlp(self._embedded(data))[self.mlp.field]
        own, env = mlps.with_weights(self.projection, embedding, self.scalars, self.of_env)
        _, features = mlps.with_weights(self.embed, embedding, 0, self.of_features)
        return torch.cat([own, env.flatten(1), features.flatten(1)], 1)

    def _embedded(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """``data`` with the scalar embedding."""
        if not isinstance(self.radial, torch.nn.Sequential):
            self.radial._output_dtype = torch.float64
            return self.radial(data)
        bessel, type_embed = list(self.radial)  # type: Any, Any
        data[self.mlp.field] = bessel_embedding(
            data["normed_edge_lengths"], bessel.bessel_weights.detach(), bessel.p, bessel.factor
        )[0]
        return type_embed(data)


def _errors(
    table: TabulatedEmbed, functions: Sequence[Callable[[Tensor], Tensor]]
) -> Iterator[tuple[float, float]]:
    """Of values and slopes, of every pair."""
    splines: list[Any] = list(table.splines)
    for kind, function in enumerate(functions):
        coefficients = torch.cat([spline.coefficients(kind) for spline in splines], 1)
        yield RadialSpline.error(coefficients, function)
