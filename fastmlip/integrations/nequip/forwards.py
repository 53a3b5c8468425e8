"""The classes that this folder's modules stand for, in the versions of NequIP that are tested, as
``make fingerprints`` prints them."""

from __future__ import annotations

from functools import partial

from fastmlip.integrations import e3nn_forwards, forwards

BOTH = "nequip 0.19.0 to 0.19.1"
KNOWN = {
    "nequip.nn._graph_mixin.SequentialGraphNetwork": {"7fa068590e4988f6": BOTH},
    "nequip.nn.convnetlayer.ConvNetLayer": {"4df7cba35564cfd2": BOTH},
    "nequip.nn.embedding.node.NodeTypeEmbed": {"8e2389ba8cd41d56": BOTH},
    "nequip.nn.interaction_block.InteractionBlock": {"a3053e7caa79e82d": BOTH},
    "nequip.nn._tp_scatter_base.TensorProductScatter": {"8834f398e042b917": BOTH},
    "nequip.nn.norm.AvgNumNeighborsNorm": {"b4f47b1059c311d7": BOTH},
    "nequip.nn.mlp.ScalarMLP": {"023445922117ec1f": BOTH},
    "nequip.nn.mlp.ScalarMLPFunction": {"e70ff2b7dde74069": BOTH},
    "nequip.nn.mlp.ScalarLinearLayer": {"cbad35ee3cf9b840": BOTH},
    "nequip.nn.embedding._edge.SphericalHarmonicEdgeAttrs": {"117bc7fb6d48b8ca": BOTH},
    "nequip.nn.embedding._edge.EdgeLengthNormalizer": {"30396dad2d9c6fcd": BOTH},
    "nequip.nn.embedding._edge.BesselEdgeLengthEncoding": {"db4b143b61e2832f": BOTH},
    "nequip.nn.embedding.cutoffs.PolynomialCutoff": {"a54fcd74aaa7bc80": BOTH},
    "nequip.nn.misc.ApplyFactor": {"5be91a6952fe3d2c": BOTH},
    "nequip.nn.atomwise.PerTypeScaleShift": {"2aa119530a748aa9": BOTH},
    # 0.19.0 divides by volumes of zero
    "nequip.nn.grad_output.ForceStressOutput": {"7538d274164a6473": "nequip 0.19.1"},
    "nequip.nn.pair_potential.ZBL": {"ebccd60369f650fe": BOTH},
    "nequip.nn.pair_potential._ZBL": {"854802f58de9b322": BOTH},
    **e3nn_forwards.KNOWN,
}
#: why a fast module must not stand for modules ``(name, module)``; empty where it may
objection = partial(forwards.objection, known=KNOWN)
