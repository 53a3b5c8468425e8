"""Allegro's modules on those of :mod:`fastmlip.nn`. Its models are made of NequIP's modules around
these, and are fed and read as NequIP's are: see :mod:`fastmlip.integrations.nequip`."""

from __future__ import annotations

from fastmlip.integrations.allegro import (
    forwards,
    layers,
    tabulate,
    tabulated_embed,
    tensor_embed,
)
from fastmlip.integrations.host import Host, Swap, by_itself

HOST = Host(
    "Allegro",
    "allegro",
    {
        "Allegro_Module": Swap(layers.FastAllegro, by_itself(layers.unsupported), layers.replace),
        "Contracter": Swap(layers.FastContracter, layers.judge_contracter),
        "TwoBodySphericalHarmonicTensorEmbed": Swap(
            tensor_embed.FastTensorEmbed, tensor_embed.judge, tensor_embed.replace
        ),
    },
    forwards.KNOWN,
    fast=(tabulated_embed.TabulatedEmbed,),
    has_tables=tabulate.has_tables,
    tabulate=tabulate.tabulate_,
)
