"""Allegro's layers, ``Allegro_Module``, on :func:`fastmlip.ops.env_sum` and
:func:`fastmlip.ops.contraction`.

What takes its place is of a class derived from the host's own, with the same modules inside. Under
autocast, and on the reference backend, it is the host's forward. Otherwise features are ``[E, dim,
U]``, channels innermost, from the first layer to the last, and the order of the edges is found
once.
"""

from __future__ import annotations

from typing import Any

import torch

from fastmlip import nn, ops
from fastmlip.integrations import inner, mlps, refine
from fastmlip.integrations.allegro import channels
from fastmlip.integrations.allegro.forwards import objection
from fastmlip.integrations.derived import Derived, derive, has_kernels
from fastmlip.ops.contraction import strided_problem

HOST_ATTRIBUTES = (
    "latents", "tps", "_env_weighter", "first_layer_env_embed_projection", "num_scalar_features",
    "num_tensor_features", "avg_num_neighbors_norm", "tensor_basis_in_field",
    "tensor_features_in_field", "scalar_in_field", "scalar_out_field", "_n_scalar_outs",
)  # fmt: skip
CONTRACTER_ATTRIBUTES = (
    "irreps_in1", "irreps_in2", "irreps_out", "instructions", "irrep_normalization", "num_paths",
    "weights", "w3j", "w3j_is_ij_diagonal", "path_channel_coupling", "mul",
)  # fmt: skip

# the operand of the first layer by its factors: weights [E, irreps, U] and harmonics [E, dim]
WEIGHTS, HARMONICS = "_fastmlip_tensor_embed_weights", "_fastmlip_tensor_embed_harmonics"
# and what tables of a tabulated model give: the first scalars, the weights of the first environment
SCALARS, ENV_WEIGHTS = "_fastmlip_scalars", "_fastmlip_env_weights"

Data = dict[str, Any]


class FastAllegro(Derived):
    """What the derived class has in place of the host's."""

    env_sum: nn.EnvSum
    contractions: torch.nn.ModuleList  # one for each of tps
    look: inner.Look
    tabulated: list[str]  # kinds of modules in the first projection, when it was tabulated
    _nequip_custom_ops_libs = ("fastmlip",)  # imported before a compiled model is loaded

    def forward(self: Any, data: Data) -> Data:
        """``data`` with the scalars of all layers."""
        tabulated = SCALARS in data
        x = data[SCALARS if tabulated else self.scalar_in_field]
        if not (tabulated or has_kernels(x)):
            return super().forward(data)  # type: ignore[misc]
        if altered := self.altered():
            raise RuntimeError(f"accelerated by fastmlip: {altered}; put it on the stock model")
        if tabulated:
            refine.check_call(self, x)
        return _forward(self, data)

    @torch.compiler.assume_constant_result
    def altered(self: Any) -> str:
        """What was put inside after the swap and would not run; empty where there is nothing."""
        return self.look(lambda: (_altered(self), list(self.modules())))


class FastContracter(torch.nn.Module):
    """Nothing takes the place of a ``Contracter``: a FastAllegro computes what it would."""


def _forward(layers: Any, data: Data) -> Data:
    from nequip.data import AtomicDataDict

    edge_dst, edge_attr = data["edge_index"][0], data[layers.tensor_basis_in_field]
    nodes = AtomicDataDict.num_nodes(data)
    order = ops.edge_order(edge_dst, edge_dst, nodes)
    irreps, scalars = channels.irreps_of(layers._env_weighter), layers.num_scalar_features
    features, factor = data.pop(WEIGHTS, None), data.pop(HARMONICS, None)
    if features is not None and layers.tensor_features_in_field in data:
        raise RuntimeError(
            f"accelerated by fastmlip: a module between the embedding and the layers writes "
            f"{layers.tensor_features_in_field}, which the layers do not read; put it into the "
            "stock model, before accelerate"
        )
    if features is None:
        features = data[layers.tensor_features_in_field].mT
    if SCALARS in data:
        collected, env_weight = data.pop(SCALARS), data.pop(ENV_WEIGHTS)
    else:
        embedding = data[layers.scalar_in_field]
        projection = layers.first_layer_env_embed_projection
        collected, env_weight = mlps.with_weights(projection, embedding, scalars, irreps)
    for contraction, tp, latent in zip(
        layers.contractions, layers.tps, layers.latents, strict=True
    ):
        env = layers.env_sum(env_weight, edge_attr, edge_dst, nodes, order)
        data["node_features"] = env.flatten(1)
        env = layers.avg_num_neighbors_norm(data)["node_features"].view_as(env)
        features = contraction(features, env, path_weights(tp), edge_dst, factor, order)
        factor = None
        if features.shape[1] == 1:  # the last layer has nothing else
            invariants = features[:, 0]
        else:
            features, invariants = _WithScalars.apply(features)
        own, env_weight = mlps.with_weights(latent, collected, scalars, irreps, invariants)
        collected = torch.cat([collected, own], 1)
    data["node_features"] = env.mT.flatten(1)
    data[layers.scalar_out_field] = collected
    return data


class _WithScalars(torch.autograd.Function):
    """``features`` and its scalars ``features[:, 0]``, whose gradient is written into that of the
    features; torch would add a tensor of zeros of the size of all features."""

    generate_vmap_rule = True

    @staticmethod
    def forward(features):
        return features.view_as(features), features[:, 0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad, grad_scalars):
        return grad.select_scatter(grad[:, 0] + grad_scalars, 1, 0)


def path_weights(tp: Any) -> torch.Tensor:
    """``[paths, U]`` of a ``Contracter``, which has ``[U, paths]``, or ``[paths]`` for all
    channels, and no dimension for a single path."""
    weights = tp.weights if tp.num_paths > 1 else tp.weights.unsqueeze(-1)
    return weights.mT if tp.path_channel_coupling else weights.unsqueeze(1).expand(-1, tp.mul)


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    new = derive(FastAllegro, old)
    new.env_sum = nn.EnvSum(new.tps[0].irreps_in2)
    new.contractions = torch.nn.ModuleList(nn.Contraction(_problem(tp)) for tp in new.tps)
    new.look, new.tabulated = inner.Look(), []
    return new


def projection_kinds(layers: Any) -> list[str]:
    """Kinds of the modules in the first projection, which a table may hold."""
    return [type(part).__name__ for part in layers.first_layer_env_embed_projection.modules()]


def _altered(layers: Any) -> str:
    if layers.tabulated and layers.tabulated != projection_kinds(layers):
        return "modules that its tables were made of were changed"
    return unsupported_parts(layers) or _added(layers)


def _added(layers: Any) -> str:
    ours = ("env_sum", "contractions", "avg_num_neighbors_norm")  # which are called
    return inner.why_not(
        (name, part) for name, part in layers.named_modules()
        if name and name.split(".")[0] not in ours
    )  # fmt: skip


def _problem(tp: Any) -> Any:
    normalization = tp.irrep_normalization or "none"
    return strided_problem(tp.irreps_in1, tp.irreps_in2, tp.irreps_out, normalization)


def is_taken(module: Any) -> bool:
    """Whether it is an ``Allegro_Module`` that is swapped or will be."""
    if isinstance(module, FastAllegro):
        return True
    if type(module).__name__ != "Allegro_Module" or unsupported(module):
        return False
    return not objection(module.named_modules(), keeps_hooks=True)


def judge_contracter(module: Any, model: torch.nn.Module) -> str | None:
    """None in an ``Allegro_Module`` that is swapped or will be, the row of which says so."""
    for owner in model.modules():
        if any(module is tp for tp in getattr(owner, "tps", ())):
            if is_taken(owner):
                return None
            return (
                unsupported_contracter(module)
                or _other_problem(module)
                or "the Allegro_Module around it is not swapped"
            )
    return "it is not a part of an Allegro_Module"


def unsupported_contracter(tp: Any) -> str:
    """Why a ``Contracter`` cannot be taken over; empty where it can."""
    if type(tp).__name__ != "Contracter":
        return f"{type(tp).__name__} is another accelerated kernel already"
    missing = [name for name in CONTRACTER_ATTRIBUTES if not hasattr(tp, name)]
    if missing:
        return f"an unknown version of Contracter, without {', '.join(missing)}"
    if tp.instructions is not None:
        return "its paths are chosen by hand"
    return ""


def _other_problem(tp: Any) -> str:
    """A model may bring its own e3nn; some versions before 0.5 have other signs in these tables."""
    try:
        problem = _problem(tp)
    except ValueError as error:
        return str(error)
    if problem.weight_numel != tp.num_paths:
        return f"it has {tp.num_paths} paths, not {problem.weight_numel}"
    ours = torch.zeros(problem.weight_numel, problem.dim_in1, problem.dim_in2, problem.dim_out)
    for number, p in enumerate(problem.paths):
        for i, j, k, value in p.cg:
            ours[number, p.in1_offset + i, p.in2_offset + j, p.out_offset + k] = value
    if tp.w3j_is_ij_diagonal:
        ours = ours.sum(2)
    theirs = tp.w3j.detach().cpu().float().reshape(-1)
    if theirs.shape != ours.reshape(-1).shape or (theirs - ours.reshape(-1)).abs().max() > 1e-5:
        return "its Wigner 3j symbols differ from those of the installed e3nn"
    return ""


def unsupported(module: Any) -> str:
    """Why an ``Allegro_Module`` cannot be swapped; empty where it can."""
    return unsupported_parts(module) or next(filter(None, map(_other_problem, module.tps)), "")


def unsupported_parts(module: Any) -> str:
    """Why modules inside, whatever their numbers are, cannot be passed by; empty where they can."""
    missing = [name for name in HOST_ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"an unknown version of Allegro's class, without {', '.join(missing)}"
    if any(count != 1 for count in module._n_scalar_outs):
        return "its layers hand on more than one scalar a channel"
    reasons = [channels.unsupported_weighter(module._env_weighter)]
    reasons += [unsupported_contracter(tp) for tp in module.tps]
    reasons += [mlps.unsupported(module.first_layer_env_embed_projection, "projection")]
    reasons += [mlps.unsupported(latent, "latent") for latent in module.latents]
    return next((reason for reason in reasons if reason), "")
