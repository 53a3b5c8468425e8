"""The classes that this folder's modules stand for, in the versions of MACE that are tested, as
``make fingerprints`` prints them."""

from __future__ import annotations

from fastmlip.integrations import e3nn_forwards

VERSION = "mace-torch 0.3.16"
KNOWN: dict[str, dict[str, str]] = {
    "mace.modules.models.MACE": {"449bbeb537cbffb2": VERSION},
    "mace.modules.models.ScaleShiftMACE": {"f72c03c99dcc1cfa": VERSION},
    "mace.modules.blocks.LinearNodeEmbeddingBlock": {"8e6174345efca6e0": VERSION},
    "mace.modules.blocks.RealAgnosticInteractionBlock": {"19045dd861a5cf4b": VERSION},
    "mace.modules.blocks.RealAgnosticResidualInteractionBlock": {"8d82c9770ff4e533": VERSION},
    "mace.modules.blocks.RealAgnosticDensityInteractionBlock": {"27e51b04fb1dac4e": VERSION},
    "mace.modules.blocks.RealAgnosticDensityResidualInteractionBlock": {
        "8853fa7bb3f0d9ec": VERSION
    },
    "mace.modules.blocks.EquivariantProductBasisBlock": {"fd34d819d67af5db": VERSION},
    "mace.modules.symmetric_contraction.SymmetricContraction": {"62edcb5b3d6d9506": VERSION},
    "mace.modules.symmetric_contraction.Contraction": {"3d8bed53c11c3487": VERSION},
    "mace.modules.irreps_tools.reshape_irreps": {"24a0bda4527917ee": VERSION},
    "mace.modules.blocks.RadialEmbeddingBlock": {"9b96ffd90da90bd1": VERSION},
    "mace.modules.radial.BesselBasis": {"9882b04f233221cb": VERSION},
    "mace.modules.radial.PolynomialCutoff": {"5c4febd7ffe0d5d6": VERSION},
    **e3nn_forwards.KNOWN,
}
