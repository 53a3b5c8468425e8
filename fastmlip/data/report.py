"""Statistics as tables for a terminal and as YAML for a config."""

from __future__ import annotations

from rich.table import Table

from fastmlip.data.results import Statistics

SECTION = "dataset_statistics"
# what of a model a statistic can be, the better choice first
USES = {
    "avg_num_neighbors": ("avg_num_neighbors", "num_neighbors_mean"),
    "per_type_energy_scales": ("forces_rms", "total_energy_std"),
    "per_type_energy_shifts": (
        "isolated_atom_energies", "per_type_energy_lstsq", "per_atom_energy_mean",
    ),
}  # fmt: skip


def tables(found: Statistics, title: str) -> list[Table]:
    """One table of the numbers for all atoms, and one with a column for each per-type one."""
    whole = Table("statistic", "value", title=title)
    whole.add_row("frames", str(found.num_frames))
    whole.add_row("atoms", str(found.num_atoms))
    for field, count in found.nan_counts.items():
        whole.add_row(f"NaN values of {field}", str(count))
    per_type = {}
    for name, value in found.items():
        if not isinstance(value, dict):
            whole.add_row(name, f"{value:.6f}")
        elif value.keys() == found.atoms_per_type.keys():
            per_type[name] = value
    if not per_type:
        return [whole]
    types = Table("type", "atoms", *(name.replace("_", " ") for name in per_type))
    for name, atoms in found.atoms_per_type.items():
        types.add_row(name, str(atoms), *(f"{value[name]:.6f}" for value in per_type.values()))
    return [whole, types]


def to_yaml(found: Statistics, origin: str) -> str:
    """A section of a config with all statistics, and comments on where to use them."""
    lines = [f"# {found.num_frames} frames, {found.num_atoms} atoms: {origin}", f"{SECTION}:"]
    for name, value in found.items():
        if isinstance(value, dict):
            lines.append(f"  {name}:")
            lines += [f"    {_quoted(key)}: {_number(x)}" for key, x in value.items()]
        else:
            lines.append(f"  {name}: {_number(value)}")
    lines.append("# in the model, for instance:")
    for parameter, choices in USES.items():
        sound = [name for name in choices if name in found and name not in found.notes]
        if sound:
            lines.append(f"#   {parameter}: ${{{SECTION}.{sound[0]}}}")
    return "\n".join(lines) + "\n"


def _quoted(key: str) -> str:
    """A YAML string: N, Y and No are element symbols, and booleans to YAML 1.1."""
    return "'" + key.replace("'", "''") + "'"


def _number(value: float) -> str:
    """All digits; with a point, because 1e-05 is a string to YAML 1.1."""
    digits, exponent, power = repr(value).partition("e")
    return digits + ".0" * bool(exponent and "." not in digits) + exponent + power
