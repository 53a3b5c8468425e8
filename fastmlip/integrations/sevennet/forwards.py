"""The classes that this folder's modules stand for, in the versions of SevenNet that are tested, as
``make fingerprints`` prints them."""

from __future__ import annotations

from fastmlip.integrations import e3nn_forwards

VERSION = "sevenn 0.13.0"
KNOWN: dict[str, dict[str, str]] = {
    "sevenn.nn.sequential.AtomGraphSequential": {"a357aeacd3981944": VERSION},
    "sevenn.nn.edge_embedding.EdgeEmbedding": {"8d7ae526c5652312": VERSION},
    "sevenn.nn.edge_embedding.BesselBasis": {"a5755f6002cbefc7": VERSION},
    "sevenn.nn.edge_embedding.PolynomialCutoff": {"91547c4eb14792a0": VERSION},
    "sevenn.nn.edge_embedding.XPLORCutoff": {"57e7a7aa4f5b93c2": VERSION},
    "sevenn.nn.edge_embedding.SphericalEncoding": {"cb75bd7029a2b678": VERSION},
    "sevenn.nn.edge_embedding.EdgePreprocess": {"ce010bf3ecd26bbc": VERSION},
    "sevenn.nn.node_embedding.OnehotEmbedding": {"7c30e1a70b86909c": VERSION},
    "sevenn.nn.linear.IrrepsLinear": {"eb0797b6f04991c3": VERSION},
    "sevenn.nn.linear.FCN_e3nn": {"a85b3782e8209d25": VERSION},
    "sevenn.nn.linear.AtomReduce": {"59bff4bb7c8bb547": VERSION},
    "sevenn.nn.self_connection.SelfConnectionIntro": {"2c86ca86169bf1fa": VERSION},
    "sevenn.nn.self_connection.SelfConnectionLinearIntro": {"da82992654b698b6": VERSION},
    "sevenn.nn.self_connection.SelfConnectionOutro": {"904ecd050ce39711": VERSION},
    "sevenn.nn.convolution.IrrepsConvolution": {"5eb478e741d25f7a": VERSION},
    "sevenn.nn.equivariant_gate.EquivariantGate": {"57ff8408da3f0af9": VERSION},
    "sevenn.nn.scale.Rescale": {"082811822e9fe964": VERSION},
    "sevenn.nn.scale.SpeciesWiseRescale": {"d84ab78b510edcd4": VERSION},
    "sevenn.nn.scale.ModalWiseRescale": {"db57fc2f750802b8": VERSION},
    "sevenn.nn.force_output.ForceOutput": {"c7604bc6c1bcf41e": VERSION},
    "sevenn.nn.force_output.ForceStressOutput": {"f9ac84053e2d5b67": VERSION},
    "sevenn.nn.force_output.ForceStressOutputFromEdge": {"f9a1722755f89750": VERSION},
    "sevenn.nn.sequential._ModalInputPrepare": {"2c3cbc66ccac7b8a": VERSION},
    **e3nn_forwards.KNOWN,
}
