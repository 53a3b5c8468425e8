"""NequIP's ``ForceStressOutput`` with the volume of a cell as a triple product.

The host calls ``torch.linalg.det`` for it: LAPACK, for 9 numbers, whose code is never in the caches
when it is called, once a step. Compiled for a CPU this takes as long as a tenth of a small model.
What is written again here is the host's forward for positions in a cell; everything else, such as
edge vectors of LAMMPS ML-IAP, is the host's own.
"""

from __future__ import annotations

from typing import Any

import torch

from fastmlip.integrations.derived import Derived, derive
from fastmlip.integrations.nequip.sequential_graph_network import FastSequentialGraphNetwork

Data = dict[str, torch.Tensor]
DISPLACEMENT = "_displacement"  # as the host calls it


class FastForceStressOutput(Derived):
    """What the derived class has in place of the host's."""

    func: torch.nn.Module
    training: bool

    def forward(self: Any, data: Data) -> Data:
        """``data`` with ``forces`` (energy / length), ``virial`` (energy) and ``stress``
        (energy / volume): of a strain that is symmetrised, as in Knuth et al., Comput. Phys.
        Commun. 190, 33-50 (2015). Frames without a volume have no stress, it is NaN."""
        if not self.do_derivatives or "edge_vectors" in data or "cell" not in data:
            return super().forward(data)  # type: ignore[misc]
        pos, given = data["pos"], data["cell"]
        had_gradient = pos.requires_grad
        frames = data["num_atoms"].size(0) if "batch" in data and "num_atoms" in data else 1
        cell = given.view(-1, 3, 3).expand(frames, 3, 3)
        strain = pos.new_zeros((frames, 3, 3) if frames > 1 else (3, 3)).requires_grad_(True)
        data[DISPLACEMENT] = strain
        symmetric = 0.5 * (strain + strain.transpose(-1, -2))
        pos.requires_grad_(True)
        if frames > 1:
            of_atoms = torch.index_select(symmetric, 0, data["batch"])
            data["pos"] = pos + torch.bmm(pos.unsqueeze(-2), of_atoms).squeeze(-2)
            data["cell"] = cell + torch.bmm(cell, symmetric)
        else:
            data["pos"] = pos + (pos.view(-1, 3, 1) * symmetric).sum(1)
            data["cell"] = cell + (cell.view(3, 3, 1) * symmetric).sum(1)
        options = {"forces_only": True} if isinstance(self.func, FastSequentialGraphNetwork) else {}
        data = self.func(data, **options)
        by_pos, by_strain = torch.autograd.grad(
            [data["total_energy"].sum()], [pos, strain], create_graph=self.training
        )
        virial, volume = by_strain.view(frames, 3, 3), volumes(cell)
        # never a division by zero, whose derivative would be NaN even where it is not used
        there = volume > 0
        stress = virial / torch.where(there, volume, 1.0)
        data["forces"] = -by_pos
        data["stress"] = torch.where(there, stress, torch.nan)
        data["virial"] = -virial
        data["cell"] = given
        del data[DISPLACEMENT]
        if not had_gradient:
            pos.requires_grad_(False)
        return data


def volumes(cell: torch.Tensor) -> torch.Tensor:
    """``[frames, 1, 1]``: |a . (b x c)| of the rows of ``cell``, ``[frames, 3, 3]``."""
    a, b, c = cell.unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(-1).abs().view(-1, 1, 1)


def judge(module: torch.nn.Module, model: torch.nn.Module) -> str | None:
    """Why a ``ForceStressOutput`` cannot be swapped, empty where it can; None where it is the model
    itself, which loses nothing but this."""
    return None if module is model else ""


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    return derive(FastForceStressOutput, old)
