"""Module of :mod:`fastmlip.ops.gate`, which states the formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from e3nn import nn

from fastmlip import ops
from fastmlip.backend import FLOATS
from fastmlip.ops.gate import Segment, make_tables, reference

NAMES = {torch.nn.functional.silu: "silu", torch.tanh: "tanh"}  # of e3nn's activation functions


class Gate(torch.nn.Module):
    """e3nn's ``Gate``: activated scalars, then irreps multiplied by activated gates.

    Args:
        irreps_scalars: irreps of the scalars.
        act_scalars: for each of their blocks ``torch.nn.functional.silu``, ``torch.tanh`` or None.
        irreps_gates: irreps of the gates, scalars too.
        act_gates: likewise for each of their blocks.
        irreps_gated: as many irreps as there are gates.

    Raises:
        ValueError: irreps or activations that do not fit, or an activation that is none of these.
    """

    segments: tuple[Segment, ...]
    tables: torch.Tensor

    def __init__(
        self,
        irreps_scalars: Any,
        act_scalars: Sequence[Any],
        irreps_gates: Any,
        act_gates: Sequence[Any],
        irreps_gated: Any,
    ) -> None:
        super().__init__()
        gate = nn.Gate(irreps_scalars, act_scalars, irreps_gates, act_gates, irreps_gated)
        self.irreps_in, self.irreps_out = gate.irreps_in, gate.irreps_out
        set_segments(self, gate)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``[..., irreps_out.dim]`` of features ``[..., irreps_in.dim]``."""
        return apply(self, features)

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}"


def set_segments(module: Any, gate: Any) -> None:
    """Give ``module`` what :func:`apply` reads, from an ``e3nn.nn.Gate``."""
    module.segments = segments_of(gate)
    module.register_buffer("tables", make_tables(module.segments), persistent=False)


def apply(module: Any, features: torch.Tensor) -> torch.Tensor:
    """The forward of ``module``; dtypes without a kernel, as under autocast, take the reference."""
    rows = features.reshape(-1, features.shape[-1])
    if rows.dtype in FLOATS:
        result = ops.gate(rows, module.segments, module.tables)
    else:
        result = reference(rows, module.segments)
    return result.view(*features.shape[:-1], result.shape[1])


def segments_of(gate: Any) -> tuple[Segment, ...]:
    """What the columns of an ``e3nn.nn.Gate``'s input are.

    Raises:
        ValueError: an activation that has no kernel.
    """
    cut = gate.sc.cut
    starts = [s.start for s in cut.irreps_in.slices()]
    scalars, gates, gated = ([starts[i] for i in part] for part in cut.instructions)
    segments, out = [], 0
    for column, activation in _columns(scalars, gate.irreps_scalars, gate.act_scalars):
        segments.append(Segment(column, 0, out, 1, 0, *activation))
        out += 1
    columns = iter(_columns(gates, gate.irreps_gates, gate.act_gates))
    for start, (mul, ir) in zip(gated, gate.irreps_gated, strict=True):
        for u in range(mul):
            column, activation = next(columns)
            segments.append(Segment(column, start + u * ir.dim, out, 1, ir.dim, *activation))
            out += ir.dim
    return _merged(segments)


def _columns(starts: list[int], irreps: Any, act: Any) -> list[tuple[int, tuple[str, float]]]:
    """Where each scalar of a part of the input lies, and its activation. Blocks of ``irreps`` are
    merged ones, those of the activations are not."""
    columns = [
        start + u for start, (mul, _) in zip(starts, irreps, strict=True) for u in range(mul)
    ]
    activations = [_activation(one) for mul, _, one in act.paths for _ in range(mul)]
    return list(zip(columns, activations, strict=True))


def _merged(segments: list[Segment]) -> tuple[Segment, ...]:
    """Neighbours in one."""
    result: list[Segment] = []
    for s in segments:
        last = result[-1] if result else None
        if last and s == last._replace(
            gate=last.gate + last.mul,
            start=last.start + last.mul * last.dim,
            out=last.out + last.mul * max(1, last.dim),
            mul=1,
        ):
            result[-1] = last._replace(mul=last.mul + 1)
        else:
            result.append(s)
    return tuple(result)


def _activation(act: Any) -> tuple[str, float]:
    """Name and factor of one of e3nn's normalised activations."""
    if act is None:
        return "identity", 1.0
    name = NAMES.get(act.f)
    if name is None:
        raise ValueError(
            f"activation {getattr(act.f, '__name__', act.f)}: expected silu, tanh or None"
        )
    return name, 1.0 if act._is_id else act.cst
