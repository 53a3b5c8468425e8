"""MACE's models on the modules of :mod:`fastmlip.nn` and :mod:`fastmlip.ops`."""

from __future__ import annotations

from fastmlip.integrations.host import Host, Swap, by_itself
from fastmlip.integrations.mace import forwards, models, network, tabulate

_WHOLE = Swap(
    network.FastMACE,
    by_itself(network.unsupported_model),
    network.replace,
    has_rivals=False,
    parts=network.passed_by,
    in_place=True,
)
HOST = Host(
    "MACE",
    "mace",
    {"ScaleShiftMACE": _WHOLE, "MACE": _WHOLE},
    forwards.KNOWN,
    has_tables=tabulate.has_tables,
    tabulate=tabulate.tabulate_,
    describe=models.describe,
    load=models.load,
    takes=models.TAKES,
)
