"""Doubt: intervals, paired tests, margins. Knows no benchmark and no file."""

from evaluators.statistics.intervals import (
    Interval,
    PairedDifference,
    StatisticsError,
    mean_interval,
    paired_difference,
    proportion_interval,
    published_score,
)

__all__ = [
    "Interval",
    "PairedDifference",
    "StatisticsError",
    "mean_interval",
    "paired_difference",
    "proportion_interval",
    "published_score",
]
