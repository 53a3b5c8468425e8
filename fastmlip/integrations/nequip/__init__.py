"""NequIP's modules on those of :mod:`fastmlip.nn`; a file here for each class of NequIP's.

Allegro's models are made of NequIP's modules around their own: they are fed and read as NequIP's
are. What NequIP calls of fastmlip is in :mod:`fastmlip.integrations.modifiers`.
"""

from __future__ import annotations

import torch

from fastmlip import nn
from fastmlip.integrations import gate, harmonics
from fastmlip.integrations.host import Host, Swap, all_but, by_itself
from fastmlip.integrations.nequip import (
    edge_embedding,
    force_stress,
    forwards,
    interaction_block,
    models,
    per_type_scale_shift,
    private,
    scalar_mlp,
    sequential_graph_network,
    tabulate,
    tensor_product_scatter,
    zbl,
)

SWAPS = {
    "TensorProductScatter": Swap(
        tensor_product_scatter.FastTensorProductScatter,
        by_itself(tensor_product_scatter.unsupported),
    ),
    "InteractionBlock": Swap(
        interaction_block.FastInteractionBlock,
        interaction_block.judge,
        interaction_block.replace,
        parts=all_but("tp_scatter", "ghost_exchange"),
    ),
    "SequentialGraphNetwork": Swap(
        sequential_graph_network.FastSequentialGraphNetwork,
        sequential_graph_network.judge,
        sequential_graph_network.replace,
        has_rivals=False,
        parts=lambda network: [("", network)],
    ),
    **{
        name: Swap(fast, edge_embedding.judge, edge_embedding.replace, has_rivals=False)
        for name, fast in edge_embedding.PARTS.items()
    },
    "SphericalHarmonics": Swap(harmonics.FastSphericalHarmonics, edge_embedding.judge_harmonics),
    "PerTypeScaleShift": Swap(
        per_type_scale_shift.FastPerTypeScaleShift,
        by_itself(per_type_scale_shift.unsupported),
        per_type_scale_shift.replace,
    ),
    "ScalarMLP": Swap(
        scalar_mlp.FastScalarMLP, by_itself(scalar_mlp.unsupported), scalar_mlp.replace
    ),
    "ForceStressOutput": Swap(
        force_stress.FastForceStressOutput,
        force_stress.judge,
        force_stress.replace,
        has_rivals=False,
        parts=all_but("func"),
    ),
    "Gate": Swap(gate.FastGate, by_itself(gate.unsupported), gate.replace),
    "ZBL": Swap(zbl.FastZBL, by_itself(zbl.unsupported)),
}


def _has_tables(model: torch.nn.Module) -> bool:
    return any(isinstance(m, interaction_block.FastInteractionBlock) for m in model.modules())


HOST = Host(
    "NequIP",
    "nequip",
    SWAPS,
    forwards.KNOWN,
    fast=(nn.Gate, nn.PerTypeScaleShift, nn.ZBL),
    after_swap=private.drop_compiled,
    has_tables=_has_tables,
    tabulate=tabulate.tabulate_,
    describe=models.describe,
    load=models.load,
    takes=models.TAKES,
)
