"""The classes that this folder's modules stand for, in the versions of MACE that are tested, as
``make fingerprints`` prints them."""

from __future__ import annotations

from fastmlip.integrations import e3nn_forwards

VERSION = "mace-torch 0.3.16"
KNOWN: dict[str, dict[str, str]] = {
    "mace.modules.models.MACE": {},
    "mace.modules.models.ScaleShiftMACE": {},
    "mace.modules.blocks.LinearNodeEmbeddingBlock": {},
    "mace.modules.blocks.RealAgnosticInteractionBlock": {},
    "mace.modules.blocks.RealAgnosticResidualInteractionBlock": {},
    "mace.modules.blocks.RealAgnosticDensityInteractionBlock": {},
    "mace.modules.blocks.RealAgnosticDensityResidualInteractionBlock": {},
    "mace.modules.blocks.EquivariantProductBasisBlock": {},
    "mace.modules.symmetric_contraction.SymmetricContraction": {},
    "mace.modules.symmetric_contraction.Contraction": {},
    "mace.modules.irreps_tools.reshape_irreps": {},
    "mace.modules.radial.BesselBasis": {},
    "mace.modules.radial.PolynomialCutoff": {},
    **e3nn_forwards.KNOWN,
}
