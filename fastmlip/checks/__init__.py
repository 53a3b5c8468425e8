"""``fastmlip check``: whether the accelerated form of a model is right, on this machine.

:func:`check` builds a model stock and fused, and goes through a table of checks
(:data:`fastmlip.checks.table.CHECKS`) on a few structures.
"""

from fastmlip.checks.report import Report, Result
from fastmlip.checks.run import check

__all__ = ["Report", "Result", "check"]
