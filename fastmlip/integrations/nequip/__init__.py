"""NequIP's modules on those of :mod:`fastmlip.nn`; a file here for each class of NequIP's.

Allegro's models are made of NequIP's modules around their own: they are fed and read as NequIP's
are. What NequIP calls of fastmlip is in :mod:`fastmlip.integrations.modifiers`.
"""

from __future__ import annotations

from typing import Any

import torch

from fastmlip import nn
from fastmlip.integrations import gate
from fastmlip.integrations.host import Host, Swap, by_itself
from fastmlip.integrations.nequip import (
    edge_embedding,
    force_stress,
    interaction_block,
    models,
    per_type_scale_shift,
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
        interaction_block.FastInteractionBlock, interaction_block.judge, interaction_block.replace
    ),
    **{
        name: Swap(fast, edge_embedding.judge, edge_embedding.replace, has_rivals=False)
        for name, fast in edge_embedding.PARTS.items()
    },
    "SphericalHarmonics": Swap(
        edge_embedding.FastSphericalHarmonics, edge_embedding.judge_harmonics
    ),
    "PerTypeScaleShift": Swap(
        per_type_scale_shift.FastPerTypeScaleShift,
        by_itself(per_type_scale_shift.unsupported),
        per_type_scale_shift.replace,
    ),
    "ForceStressOutput": Swap(
        force_stress.FastForceStressOutput,
        force_stress.judge,
        force_stress.replace,
        has_rivals=False,
    ),
    "Gate": Swap(gate.FastGate, by_itself(gate.unsupported), gate.replace),
    "ZBL": Swap(zbl.FastZBL, by_itself(zbl.unsupported)),
}


def _after_swap(model: torch.nn.Module) -> None:
    """Drop what ``compile_mode: compile`` compiled with the old modules; it compiles again."""
    module: Any
    for module in model.modules():
        if hasattr(module, "_compiled_cache"):
            module._compiled_cache[0].clear()
            module.weight_names = module.buffer_names = None


def _has_tables(model: torch.nn.Module) -> bool:
    return any(isinstance(m, interaction_block.FastInteractionBlock) for m in model.modules())


HOST = Host(
    "NequIP",
    SWAPS,
    fast=(nn.Gate, nn.PerTypeScaleShift, nn.ZBL),
    after_swap=_after_swap,
    has_tables=_has_tables,
    tabulate=tabulate.tabulate_,
    describe=models.describe,
    load=models.load,
    takes=models.TAKES,
)
