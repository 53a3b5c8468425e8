"""Swapping fastmlip's modules into models of other packages, by their structure."""

from fastmlip.integrations.swap import Row, accelerate, summary
from fastmlip.integrations.tabulate import tabulate

__all__ = ["Row", "accelerate", "summary", "tabulate"]
