"""e3nn's ``SphericalHarmonics`` by itself, on :class:`fastmlip.nn.SphericalHarmonics`."""

from __future__ import annotations

from typing import Any

from fastmlip.integrations import e3nn_forwards, forwards
from fastmlip.nn import SphericalHarmonics
from fastmlip.spherical_harmonics import L_MAX

HOST_ATTRIBUTES = ("normalize", "normalization", "_lmax", "_ls_list")


class FastSphericalHarmonics(SphericalHarmonics):
    """Takes the place of e3nn's ``SphericalHarmonics`` of normalised vectors."""

    _nequip_custom_ops_libs = ("fastmlip",)

    def __init__(self, old: Any) -> None:
        super().__init__(old._lmax, old.normalization)
        self.irreps_in, self.irreps_out = old.irreps_in, old.irreps_out
        self.normalize, self._lmax = old.normalize, old._lmax


def unsupported_harmonics(module: Any) -> str:
    """Why e3nn's ``SphericalHarmonics`` cannot be swapped; empty where it can."""
    missing = [name for name in HOST_ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"an unknown version of the class, without {', '.join(missing)}"
    if not module.normalize:
        return "it does not normalise its vectors"
    if list(module._ls_list) != list(range(module._lmax + 1)):
        return f"its degrees are {list(module._ls_list)}, not 0 to {module._lmax}"
    if module._lmax > L_MAX:
        return f"its degrees go beyond {L_MAX}"
    return forwards.objection(module.named_modules(), e3nn_forwards.KNOWN)
