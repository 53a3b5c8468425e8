"""SevenNet's modules on those of :mod:`fastmlip.nn` and :mod:`fastmlip.ops`; a file here for each
class of SevenNet's that is swapped."""

from __future__ import annotations

from fastmlip.integrations import gate
from fastmlip.integrations.host import Host, Swap, by_itself
from fastmlip.integrations.sevennet import (
    convolution,
    edge_embedding,
    forwards,
    models,
    network,
    tabulate,
)

HOST = Host(
    "SevenNet",
    "sevenn",
    {
        "AtomGraphSequential": Swap(
            network.FastAtomGraphSequential,
            network.judge,
            network.replace,
            parts=network.parts,
            in_place=True,
        ),
        "EdgeEmbedding": Swap(
            edge_embedding.FastEdgeEmbedding,
            by_itself(edge_embedding.unsupported),
            edge_embedding.replace,
        ),
        "IrrepsConvolution": Swap(
            convolution.FastIrrepsConvolution,
            by_itself(convolution.unsupported),
            convolution.replace,
        ),
        "Gate": Swap(gate.FastGate, by_itself(gate.unsupported), gate.replace, has_rivals=False),
    },
    forwards.KNOWN,
    has_tables=tabulate.has_tables,
    tabulate=tabulate.tabulate_,
    describe=models.describe,
    load=models.load,
    takes=models.TAKES,
)
