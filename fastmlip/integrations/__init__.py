"""Swapping fastmlip's modules into models of other packages, by their structure."""

from fastmlip.integrations.swap import Row, accelerate, summary

__all__ = ["Row", "accelerate", "summary"]
