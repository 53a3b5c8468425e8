"""A NequIP or Allegro model as ``pair_style fastmlip`` of LAMMPS runs it, compiled by AOTInductor.

A rank gives the vectors of its edges, all of which end at atoms of its own (*local*), and the types
of these and of its ghosts, which are copies of atoms that it or another rank owns. With r_e the
vector of edge e, from its receiver to its sender, it gets::

    energy[i] of every local atom i
    grad[e] = d (sum of the energies of all ranks' atoms) / d r_e

of which the plug-in makes forces, - grad[e] on the sender and + grad[e] on the receiver, and the
virial, - r_e grad[e], one half for each of the two atoms. An edge and its reverse may share a
gradient where both end at atoms of this rank: these sums do not change.

NequIP's layers need the features of ghosts, which :func:`fastmlip.ops.ghost_exchange` gets from
their owners between the layers; all ranks run the same graph. Allegro's need none.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fastmlip
from fastmlip import ops
from fastmlip.integrations import structures
from fastmlip.integrations.host import HostModel
from fastmlip.integrations.nequip import private
from fastmlip.integrations.nequip.sequential_graph_network import FastSequentialGraphNetwork
from fastmlip.ops.ghost_exchange import images
from fastmlip.torch_private import ARCHIVE_LOGGER

Tensor = torch.Tensor
INTERFACE = "1"  # between a model file and the plug-in, which takes this one alone
SUFFIX = ".lammps.pt2"
# instruction sets of the code: what gcc and Inductor call them
ISAS = {"avx512": ("x86-64-v4", 512), "avx2": ("x86-64-v3", 256), "portable": ("x86-64", 1)}
# of the largest number of its kind, compiled against eager
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}


class Inputs(NamedTuple):
    """What a rank gives: ``edge_vectors [E, 3]`` float64 in Angstrom, ``edge_index [2, E]``,
    receivers first, in the order of receivers, and the model's types ``[L]`` and ``[G]``, int64."""

    edge_vectors: Tensor
    edge_index: Tensor
    local_types: Tensor
    ghost_types: Tensor


class _Rank(NamedTuple):
    """Under NequIP's key for LAMMPS ML-IAP: how many atoms are local is all that it reads of it."""

    nlocal: int
    nghost: int


class GhostExchange(torch.nn.Module):
    """Takes the place of NequIP's module in every ``InteractionBlock``."""

    def forward(self, data: dict[str, Any], ghost_included: bool) -> dict[str, Any]:
        rank = data["lmp_mliap_data"]
        x = data["node_features"]
        x = x[: rank.nlocal] if ghost_included else x
        data["node_features"] = ops.ghost_exchange(x, rank.nghost)
        return data


class LammpsModel(torch.nn.Module):
    """:class:`Inputs` to ``energy [L]``, float64 in eV, and ``grad [E, 3]``, float64 in eV/A."""

    def __init__(self, graph: Any) -> None:
        super().__init__()
        # forces come from edge vectors here; the module that makes them from positions stays out
        self.func = getattr(graph.model, "func", graph.model)
        blocks: list[Any] = [m for m in self.func.modules() if hasattr(m, "ghost_exchange")]
        for block in blocks:
            block.ghost_exchange = GhostExchange()
        own = isinstance(self.func, FastSequentialGraphNetwork)
        self.options = {"forces_only": True} if own else {}

    def forward(
        self, edge_vectors: Tensor, edge_index: Tensor, local_types: Tensor, ghost_types: Tensor
    ) -> tuple[Tensor, Tensor]:
        vectors = edge_vectors.detach().requires_grad_(True)
        local = local_types.shape[0]
        data = {
            "edge_vectors": vectors,
            "edge_index": edge_index,
            "atom_types": torch.cat([local_types, ghost_types]),
            "lmp_mliap_data": _Rank(local, ghost_types.shape[0]),
        }
        energy = self.func(data, **self.options)["atomic_energy"].view(-1)[:local]
        (grad,) = torch.autograd.grad(energy.sum(), vectors)
        return energy.detach(), grad


class Periodic(NamedTuple):
    """A periodic frame as one rank has it: every image of an atom that an edge comes from is a
    ghost, and ``owner [G]`` says of which atom."""

    inputs: Inputs
    owner: Tensor


def periodic(frame: dict[str, Tensor]) -> Periodic:
    """Of NequIP's data of one frame with its neighbour list."""
    position, types = frame["pos"], frame["atom_types"].view(-1)
    edge_dst, edge_src = frame["edge_index"]
    order = torch.argsort(edge_dst, stable=True)
    edge_dst, edge_src = edge_dst[order], edge_src[order]
    vectors = position[edge_src] - position[edge_dst]
    is_image = torch.zeros(len(edge_src), dtype=torch.bool)
    owner = torch.empty(0, dtype=torch.long)
    if "edge_cell_shift" in frame:
        shift = frame["edge_cell_shift"][order]
        vectors = vectors + shift @ frame["cell"].view(3, 3)
        is_image = shift.abs().sum(1) > 0
        image = torch.cat([edge_src[:, None], shift.long()], 1)[is_image]
        image, number = image.unique(dim=0, return_inverse=True)
        owner = image[:, 0]
        edge_src = edge_src.clone()
        edge_src[is_image] = len(position) + number
    return Periodic(Inputs(vectors, torch.stack([edge_dst, edge_src]), types, types[owner]), owner)


def forces(inputs: Inputs, owner: Tensor, grad: Tensor) -> Tensor:
    """``[L, 3]``: of ``grad``, those of ghosts added to their owners, as the plug-in does it."""
    local = len(inputs.local_types)
    found = grad.new_zeros(local + len(inputs.ghost_types), 3)
    found.index_add_(0, inputs.edge_index[0], grad).index_add_(0, inputs.edge_index[1], -grad)
    return found[:local].index_add(0, owner, found[local:])


# ---------------------------------------------------------------- the export


def export(host: HostModel, output: Path, isa: str | None = None) -> dict[str, str]:
    """Write the accelerated or tabulated model of ``host`` to ``output``; its metadata.

    The model is changed on the way. The compiled one is compared with it on a made-up structure.

    Args:
        host: an accelerated model on a CPU.
        output: its name ends in ``.lammps.pt2``.
        isa: a name in :data:`ISAS`; by default the best that this processor runs.

    Raises:
        ValueError: an unknown instruction set; one that this processor or version of torch does
            not know.
        RuntimeError: the compiled model computes something else.
    """
    options, metadata = inductor_options(isa), about(host, isa)
    host.model.requires_grad_(False).eval()
    with private.float64_default(), tempfile.TemporaryDirectory() as folder:
        frames = [structures.generated(host, 0)[0].data, structures.small(host)]
        expected = [host.run(frame) for frame in frames]
        samples, model = [periodic(frame) for frame in frames], LammpsModel(host.model)
        exported, metadata["ghost_columns"] = _exported(model, samples)
        options["aot_inductor.metadata"] = metadata
        made = str(Path(folder) / "model.pt2")  # as torch wants the name to end
        torch._inductor.aoti_compile_and_package(
            exported, package_path=made, inductor_configs=options
        )
        with _quiet(ARCHIVE_LOGGER):  # code of an instruction set that was asked for
            compiled = torch._inductor.aoti_load_package(made)
        for sample, numbers in zip(samples, expected, strict=True):
            _compare(compiled, sample, numbers, host.dtype)
        output.write_bytes(Path(made).read_bytes())
    return metadata


def _exported(model: LammpsModel, samples: list[Periodic]) -> tuple[Any, str]:
    """The graph of ``model`` for any number of atoms and edges; the columns that its exchanges of
    ghosts move, with spaces between."""
    graphs, columns = [], ""
    for sample in samples:
        with images(sample.owner.tolist()) as calls:
            model(*sample.inputs)
            graphs.append(private.traced(model, sample.inputs))
        columns = " ".join(str(n) for kind, n in calls if kind == "forward")
    if len({graph.code for graph in graphs}) > 1:
        raise RuntimeError("the model's graph depends on the number of atoms or edges")
    edges, local, ghosts = (torch.export.Dim(name) for name in ("edges", "local", "ghosts"))
    shapes = ({0: edges}, {1: edges}, {0: local}, {0: ghosts})
    inputs = tuple(samples[0].inputs)
    return torch.export.export(graphs[0], inputs, dynamic_shapes=shapes), columns


def inductor_options(isa: str | None) -> dict[str, Any]:
    """Inductor's options for code of an instruction set."""
    if isa is None and platform.machine() not in ("x86_64", "AMD64"):
        return {}
    best = torch.ops.fastmlip.isa()
    runs = list(ISAS)[list(ISAS).index(best) :]
    if isa is not None and isa not in runs:
        raise ValueError(
            f"isa: expected one that this processor runs, {', '.join(runs)}; got {isa!r}"
        )
    if "cpp.march" not in torch._inductor.list_options():
        raise ValueError(f"isa: torch {torch.__version__} cannot be told; use 2.13 or newer")
    march, width = ISAS[isa or best]
    return {"cpp.march": march, "cpp.simdlen": width}


def about(host: HostModel, isa: str | None) -> dict[str, str]:
    """What the plug-in reads of a model file, without loading it."""
    model: Any = host.model
    cutoffs = cutoff_table(host)
    tables = {k: v for k, v in model.metadata.items() if k.startswith("fastmlip_table")}
    x86 = platform.machine() in ("x86_64", "AMD64")
    return {
        **tables,
        "fastmlip_lammps": INTERFACE,
        "fastmlip": fastmlip.__version__,
        "torch": torch.__version__,
        "type_names": " ".join(host.type_names),
        "cutoffs": " ".join(repr(float(value)) for value in cutoffs.flatten()),
        "units": "eV Angstrom",
        "model_dtype": str(host.dtype).removeprefix("torch."),
        "isa": (isa or torch.ops.fastmlip.isa()) if x86 else platform.machine(),
    }


def cutoff_table(host: HostModel) -> Tensor:
    """``[T, T]``: the cutoff of edges, by the types of the receiver and the sender, in Angstrom."""
    names, given = host.type_names, host.per_edge_type_cutoff or {}
    table = torch.full((len(names), len(names)), float(host.r_max), dtype=torch.float64)
    for i, receiver in enumerate(names):
        row = given.get(receiver, {})
        for j, sender in enumerate(names):
            value = row.get(sender) if hasattr(row, "get") else row
            table[i, j] = float(host.r_max if value is None else value)
    return table


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _compare(compiled: Any, sample: Periodic, expected: Any, dtype: torch.dtype) -> None:
    with images(sample.owner.tolist()):
        energy, grad = compiled(*sample.inputs)
    found = {"atomic_energy": energy, "forces": forces(sample.inputs, sample.owner, grad)}
    for name, value in found.items():
        if name not in expected:  # a model without forces
            continue
        truth = expected[name].detach().double().view_as(value)
        error = float((value - truth).abs().max() / truth.abs().max().clamp(min=1e-30))
        if not error <= TOLERANCES[dtype]:
            raise RuntimeError(f"the compiled model is off by {error:.1e} in its {name}")
