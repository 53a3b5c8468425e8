"""The classes that this folder's modules stand for, in the versions of Allegro that are tested, as
``make fingerprints`` prints them."""

from __future__ import annotations

from functools import partial

from fastmlip.integrations import forwards
from fastmlip.integrations.nequip import forwards as nequip

NEW = "nequip-allegro 0.8.2 to 0.8.3"
ALL = "nequip-allegro 0.8.0 to 0.8.3"
KNOWN: dict[str, dict[str, str]] = {
    "allegro.nn._allegro.Allegro_Module": {"6592324169209800": NEW},
    "allegro.nn._strided._contract.Contracter": {"b704a130695644ae": NEW},
    "allegro.nn._strided._channels.MakeWeightedChannels": {"9edc705c4c9bde9e": NEW},
    "allegro.nn.tensorembed.TwoBodySphericalHarmonicTensorEmbed": {"9e36ef56b85beb66": ALL},
    **nequip.KNOWN,
}
#: why a fast module must not stand for modules ``(name, module)``; empty where it may
objection = partial(forwards.objection, known=KNOWN)
