"""Intervals of means that a few items carry, such as KL to the full cache: most items near 0, some a hundred times larger.

Student's t assumes that the mean and its standard error vary independently. Here a sample without the large items has both
too small, so t's interval misses, and nearly always below the truth (77 % at 20 contexts: docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from evaluators.statistics.intervals import (
    MIN_CLUSTERS,
    Clusters,
    FloatArray,
    Interval,
    PairedDifference,
    checked,
    group,
    paired_values,
)

MIN_SKEWED_CLUSTERS = 20  # fewer: no method covered 92 % (docs/statistics.md)
TOO_FEW_CONTEXTS = f"under {MIN_SKEWED_CLUSTERS} contexts"
_CONFIDENCE = 0.95
_HAZEN = 8.5  # Hazen (1930), Flood Flows: samples show too little skewness, by about 1 + 8.5 / n
_WIDENING = 8.0  # of t for differences, by 1 + 8 / n; chosen in bench/statistics/skewed_means.py


class Ends(NamedTuple):
    """Lower and upper end of each interval, in the unit of the values."""

    low: FloatArray
    high: FloatArray


def skewed_mean_interval(values: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """Mean over items with the 95 % interval of `skewed_ends`, at every number of `clusters` (one label an item).

    Below 20 clusters there are no ends, and `reason` says so. Raises StatisticsError as `mean_interval` does.
    """
    return _interval(checked(values), clusters, skewed_ends, "hall_skewed_t")


def skewed_difference(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable]
) -> PairedDifference:
    """Mean of a - b over paired items with the 95 % interval of `skewed_difference_ends`; all in the same order.

    No ends below 20 clusters; too few for a verdict below 50 or where fewer than 6 items differ. Raises StatisticsError as
    `paired_difference` does.
    """
    differences = paired_values(a, b)
    interval = _interval(differences, clusters, skewed_difference_ends, "widened_skewed_t")
    return PairedDifference.of(interval, differences)


def linear_values(clusters: Clusters) -> FloatArray:
    """One value a cluster, whose mean is the mean over items and whose standard error is the cluster-robust one: (C,)."""
    residuals_C = clusters.sums_C - clusters.sizes_C * clusters.mean
    return clusters.mean + residuals_C * len(residuals_C) / clusters.sizes_C.sum()


def skewed_ends(values_C: FloatArray) -> Ends:
    """95 % interval of the mean by Hall's transformation of Student's t (Hall 1992, JRSS B 54), without resampling.

    `values_C` is (..., C): a value for each of C clusters, further axes being as many data sets; C is 3 or more. Without
    skewness the interval is Student's. The end on the side of the long tail is up to about four times as far away as his;
    its skewness is enlarged by Hazen's factor, and more of it never brings the end nearer.
    """
    mean, error, tilt, quantile = _studentized(values_C)
    size = np.abs(tilt)
    near = _toward_body(size, quantile)
    far = _toward_tail(size * (1 + _HAZEN / values_C.shape[-1]), quantile)
    has_upper_tail = tilt > 0
    low = mean - np.where(has_upper_tail, near, far) * error
    return Ends(low, mean + np.where(has_upper_tail, far, near) * error)


def skewed_difference_ends(values_C: FloatArray) -> Ends:
    """95 % interval of the mean of differences of two skewed numbers; shapes as in `skewed_ends`.

    Student's t widened by 1 + 8 / C on both sides, and `skewed_ends` where that is farther.
    """
    mean, error, _, quantile = _studentized(values_C)
    # Both sides have a long tail, and the sample shows either by chance: to trust its sign as one does for a single number
    # covers less than t itself (84 % at 20 contexts, where t covers 88).
    half_width = quantile * (1 + _WIDENING / values_C.shape[-1]) * error
    skewed = skewed_ends(values_C)
    return Ends(np.minimum(skewed.low, mean - half_width), np.maximum(skewed.high, mean + half_width))


def _studentized(values_C: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, float]:
    """Mean, standard error, skewness over the square root of C, and t's 97.5 % quantile; 0 where there is no spread."""
    from scipy import stats

    num = values_C.shape[-1]
    mean = values_C.mean(axis=-1)
    centred_C = values_C - mean[..., None]
    spread = np.sqrt((centred_C**2).mean(axis=-1))
    skewness = (centred_C**3).mean(axis=-1) / np.where(spread > 0, spread, 1.0) ** 3
    adjusted = skewness * math.sqrt(num * (num - 1)) / (num - 2)
    error = spread / math.sqrt(num - 1)
    return mean, error, adjusted / math.sqrt(num), float(stats.t.ppf((1 + _CONFIDENCE) / 2, df=num - 1))


def _toward_body(tilt: FloatArray, quantile: float) -> FloatArray:
    """Standard errors from the mean to the end away from the tail, at most `quantile`."""
    safe = np.maximum(tilt, 1e-6)  # at 0 the formula is 0 / 0, and its limit `quantile`
    return np.asarray(3 / safe * (np.cbrt(1 + safe * (quantile - safe / 6)) - 1))


def _toward_tail(tilt: FloatArray, quantile: float) -> FloatArray:
    """Standard errors from the mean to the end in the tail: from `quantile`, without skewness, to about four times that."""
    # Where the cube root is -1/2, Hall's end is farthest; more skewness would draw it in again, against all reason.
    farthest = 3 * (math.sqrt(quantile**2 + 0.75) - quantile)
    safe = np.clip(tilt, 1e-6, farthest)
    return np.asarray(3 / safe * (1 - np.cbrt(1 - safe * (quantile + safe / 6))))


def _interval(
    values: FloatArray, clusters: Sequence[Hashable], ends_of: Callable[[FloatArray], Ends], method: str
) -> Interval:
    grouped = group(values, clusters)
    num_clusters = len(grouped.sizes_C)
    low: float | None = None
    high: float | None = None
    if num_clusters >= MIN_SKEWED_CLUSTERS:
        low, high = (float(end) for end in ends_of(linear_values(grouped)))
    return Interval(
        mean=grouped.mean,
        low=low,
        high=high,
        num_items=len(values),
        num_clusters=num_clusters,
        method=method,
        is_too_few=num_clusters < MIN_CLUSTERS,
        reason="" if low is not None else TOO_FEW_CONTEXTS,
    )
