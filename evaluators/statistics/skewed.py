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
    StatisticsError,
    checked,
    group,
    paired_values,
)
from evaluators.statistics.macro_average import TaskPairs

MIN_SKEWED_CLUSTERS = 20  # fewer: no method covered 92 % (docs/statistics.md)
TOO_FEW_CONTEXTS = f"under {MIN_SKEWED_CLUSTERS} contexts"
_LEAST_OF_A_TASK = 3  # clusters that have a skewness at all
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


def skewed_macro_difference(tasks: Sequence[TaskPairs]) -> PairedDifference:
    """As `macro_difference`, for numbers whose mean a few items carry; of one task it is `skewed_difference`.

    Error, skewness and degrees of freedom (Satterthwaite's) are those of the tasks' means together. No ends below 19 degrees
    of freedom, as 20 clusters of one task have, nor with a task of fewer than 3.
    Raises StatisticsError as `macro_difference` does.
    """
    if not tasks:
        raise StatisticsError("there is no task to take a mean over.")
    differences = [paired_values(task.a, task.b) for task in tasks]
    strata = [group(values, task.clusters) for values, task in zip(differences, tasks, strict=True)]
    numbers = [len(stratum.sizes_C) for stratum in strata]
    low = high = None
    if min(numbers) >= _LEAST_OF_A_TASK:
        together = _together([_studentized(linear_values(stratum)) for stratum in strata])
        # Rounded: of one task of 20 clusters, 19 degrees may come out as a little less.
        if round(together.freedom, 6) >= MIN_SKEWED_CLUSTERS - 1:
            low, high = (float(end) for end in _difference_ends(together))
    interval = Interval(
        mean=float(np.mean([stratum.mean for stratum in strata])),
        low=low,
        high=high,
        num_items=sum(map(len, differences)),
        num_clusters=sum(numbers),
        method="widened_skewed_t",
        is_too_few=sum(numbers) < MIN_CLUSTERS,
        reason="" if low is not None else TOO_FEW_CONTEXTS,
    )
    return PairedDifference.of(interval, np.concatenate(differences))


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
    return _skewed_ends(_studentized(values_C))


def skewed_difference_ends(values_C: FloatArray) -> Ends:
    """95 % interval of the mean of differences of two skewed numbers; shapes as in `skewed_ends`.

    Student's t widened by 1 + 8 / C on both sides, and `skewed_ends` where that is farther.
    """
    return _difference_ends(_studentized(values_C))


class _Studentized(NamedTuple):
    """A mean, its standard error and its skewness, which is the values' over the square root of their number `num`.

    Error and skewness are 0 where there is no spread. `freedom` are the degrees of freedom of the error.
    """

    mean: FloatArray
    error: FloatArray
    tilt: FloatArray
    num: float
    freedom: float

    @property
    def quantile(self) -> float:
        """Student's t at 97.5 %."""
        from scipy import stats

        return float(stats.t.ppf((1 + _CONFIDENCE) / 2, df=self.freedom))


def _skewed_ends(it: _Studentized) -> Ends:
    size = np.abs(it.tilt)
    near = _toward_body(size, it.quantile)
    far = _toward_tail(size * (1 + _HAZEN / it.num), it.quantile)
    has_upper_tail = it.tilt > 0
    low = it.mean - np.where(has_upper_tail, near, far) * it.error
    return Ends(low, it.mean + np.where(has_upper_tail, far, near) * it.error)


def _difference_ends(it: _Studentized) -> Ends:
    # Both sides have a long tail, and the sample shows either by chance: to trust its sign as one does for a single number
    # covers less than t itself (84 % at 20 contexts, where t covers 88).
    half_width = it.quantile * (1 + _WIDENING / it.num) * it.error
    skewed = _skewed_ends(it)
    return Ends(np.minimum(skewed.low, it.mean - half_width), np.maximum(skewed.high, it.mean + half_width))


def _together(parts: Sequence[_Studentized]) -> _Studentized:
    """The mean of independent means: their variances and third moments add up, and so do the degrees of freedom.

    `num` is the parts' own, weighed by their variances: what a sample shows too little of, it shows too little of in each.
    """
    error_P = np.array([float(it.error) for it in parts])  # P: parts
    tilt_P = np.array([float(it.tilt) for it in parts])
    num_P = np.array([it.num for it in parts], dtype=np.float64)
    mean, total = np.asarray(np.mean([it.mean for it in parts])), float(np.sum(error_P**2))
    if not total:
        return _Studentized(mean, np.zeros(()), np.zeros(()), float(num_P.min()), float(np.sum(num_P - 1)))
    share_P = error_P**2 / total
    return _Studentized(
        mean=mean,
        error=np.asarray(math.sqrt(total) / len(parts)),
        tilt=np.asarray(np.sum(tilt_P * share_P**1.5)),
        num=1 / float(np.sum(share_P / num_P)),
        freedom=1 / float(np.sum(share_P**2 / (num_P - 1))),
    )


def _studentized(values_C: FloatArray) -> _Studentized:
    num = values_C.shape[-1]
    mean = values_C.mean(axis=-1)
    centred_C = values_C - mean[..., None]
    spread = np.sqrt((centred_C**2).mean(axis=-1))
    skewness = (centred_C**3).mean(axis=-1) / np.where(spread > 0, spread, 1.0) ** 3
    adjusted = skewness * math.sqrt(num * (num - 1)) / (num - 2)
    error = spread / math.sqrt(num - 1)
    return _Studentized(mean, error, adjusted / math.sqrt(num), num, num - 1)


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
