"""Statistics of data sets, as parameters of models. Needs no host package."""

from fastmlip.data.results import Statistics, StatisticUnavailableError
from fastmlip.data.statistics import (
    COMMON,
    ENERGY_ONLY,
    STATISTICS,
    CommonDatasetStatistics,
    DatasetStatistics,
    EnergyOnlyDatasetStatistics,
)

__all__ = [
    "COMMON",
    "CommonDatasetStatistics",
    "DatasetStatistics",
    "ENERGY_ONLY",
    "EnergyOnlyDatasetStatistics",
    "STATISTICS",
    "StatisticUnavailableError",
    "Statistics",
]
