"""Which rows a run without ``--all`` has, and how long a run takes.

A default run ends within ten minutes on 2 cores and has a row of every operator and every host's
model: the sizes and passes that simulations and training use most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MD, TRAINING = "forward+backward", "forward+backward+double backward"
# of each benchmark's parameters, the values that a default run takes; the others take all
ROWS: dict[str, dict[str, Sequence[Any]]] = {
    "bench_conv": {
        "name": ("nequip-M-hidden", "sevennet-0-hidden", "mace-medium", "allegro-OAM-L-last"),
        "nodes": (108,),
        "what": (MD, TRAINING),
    },
    "bench_radial_conv": {"what": (MD,)},
    "bench_scalar_mlp": {"name": ("allegro, latent",), "weights": ("frozen",), "what": (MD,)},
    "bench_env_sum": {"what": (MD, TRAINING)},
    "bench_spline": {"what": (MD,)},
    "bench_contraction": {"what": (MD, TRAINING)},
    "bench_symmetric_contraction": {
        "name": ("mace medium",),
        "nodes": (64,),
        "weights": ("frozen",),
        "what": (MD,),
    },
    "bench_irreps_linear": {"nodes": (1_000,), "what": (MD,)},
    "bench_pair_linear": {"name": ("nequip-M, last layer",), "what": (MD, TRAINING)},
    "bench_gate": {"name": ("nequip-M",), "nodes": (1_000,), "what": (MD, TRAINING)},
    "bench_edge_embedding": {"preset": ("M",), "edges": (5_400,), "what": (MD, TRAINING)},
    "bench_edge_vectors": {"edges": (5_400,), "what": (MD, TRAINING)},
    "bench_scale_shift": {"name": ("per type",), "atoms": (1_000,), "what": (MD, TRAINING)},
    "bench_zbl": {"edges": (10_000,), "what": (MD, TRAINING)},
    "bench_dataset_statistics": {"size": (100,)},
    "bench_nequip": {"preset": ("S", "M"), "what": ("energy+forces, frozen", "training step")},
    "bench_inference": {"preset": ("S",), "structure": ("108-atom alloy",)},
    "bench_allegro_training": {"name": ("l1 16 2",)},
}
# seconds of a step on 2 cores, on average: models are large, or compiled and run in new processes
SECONDS = {
    "bench_nequip": 6,
    "bench_inference": 15,
    "bench_allegro": 20,
    "bench_allegro_training": 3,
    "bench_allegro_compiled_training": 60,
    "bench_mace": 10,
    "bench_scaling": 20,
    "bench_peak_memory": 20,
    "bench_allegro_peak_memory": 30,
    "bench_dataset_statistics": 5,
}


def has(function: str, parameters: Mapping[str, Any]) -> bool:
    """Whether a default run has this row."""
    if function not in ROWS:
        return False
    return all(parameters[name] in values for name, values in ROWS[function].items())


def minutes(functions: Sequence[str]) -> int:
    """About how long these steps take on 2 cores, where one takes a second if not said above."""
    return max(1, round(sum(SECONDS.get(name, 1) for name in functions) / 60))
