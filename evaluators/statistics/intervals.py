"""Means and their confidence intervals. Items on one context are one cluster, and an interval over too few says so."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_CLUSTERS = 50  # fewer carry no verdict: at 20, 95 % intervals of rare differences cover as little as 65 %
MIN_BOOTSTRAP_CLUSTERS = 200  # fewer: Student t covers more (docs/statistics.md: at 50, up to 9 points more)
MIN_DISCORDANT_PAIRS = 6  # fewer cannot reach p < 0.05 in a sign test even if all agree (2 * 0.5**5 = 0.06)
NUM_RESAMPLES = 9_999
_BOOTSTRAP_SEED = 20_240  # fixed: the same rows always print the same interval
_MAX_DRAWN_INDICES = 2_000_000  # resampling memory at a time: 16 MB

FloatArray = NDArray[np.float64]


class StatisticsError(ValueError):
    """There is nothing to aggregate, or the inputs do not belong together."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with a confidence interval, in the unit of the values.

    `low` and `high` are None where there are too few clusters to estimate them from: one, or as `reason` says. `method` is
    "student_t", "bca_cluster_bootstrap", "clopper_pearson", or one of `evaluators.statistics.skewed`; `is_too_few` says
    that no verdict may rest on it.
    """

    mean: float
    low: float | None
    high: float | None
    num_items: int
    num_clusters: int
    method: str
    is_too_few: bool
    reason: str = ""

    @property
    def has_no_spread(self) -> bool:
        """Whether all clusters are alike, so that both ends lie on the mean: nothing estimated, and no certainty."""
        # Not ==: means of equal values differ by rounding.
        return self.low is not None and self.high is not None and math.isclose(self.low, self.high)

    @property
    def ends(self) -> tuple[float, float] | None:
        """`low` and `high` as they may be shown; None where one cluster, or clusters without spread, tell nothing."""
        if self.low is None or self.high is None or self.has_no_spread:
            return None
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of a - b over items both have, with how many items a wins, loses and ties."""

    interval: Interval
    num_higher: int
    num_lower: int
    num_equal: int
    is_too_few: bool

    @classmethod
    def of(cls, interval: Interval, differences: FloatArray) -> PairedDifference:
        """Count the items of `differences` by their sign; too few where `interval` is, or below 6 that differ."""
        num_higher, num_lower = int((differences > 0).sum()), int((differences < 0).sum())
        return cls(
            interval=interval,
            num_higher=num_higher,
            num_lower=num_lower,
            num_equal=len(differences) - num_higher - num_lower,
            is_too_few=interval.is_too_few or num_higher + num_lower < MIN_DISCORDANT_PAIRS,
        )

    @property
    def verdict(self) -> Literal["higher", "lower", "inconclusive"]:
        """Whether a is above or below b; inconclusive when the interval holds 0 or there is too little."""
        low, high = self.interval.low, self.interval.high
        if self.is_too_few or low is None or high is None or low <= 0 <= high:
            return "inconclusive"
        return "higher" if low > 0 else "lower"


class Clusters(NamedTuple):
    """Sum and number of the items of each of C clusters, in an order that the order of the items does not change."""

    sums_C: FloatArray
    sizes_C: FloatArray

    @property
    def mean(self) -> float:
        """Mean over items."""
        return float(self.sums_C.sum() / self.sizes_C.sum())


def published_score(scores: Sequence[float]) -> float:
    """round(100 * mean, 2), as LongBench and RULER publish it; StatisticsError when there is no score."""
    return round(100 * float(np.mean(checked(scores))), 2)


def mean_interval(
    values: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95
) -> Interval:
    """Mean over items, with an interval that treats `clusters` (one label an item) as the independent units.

    Fewer than 200 clusters: Student t over cluster means weighted by size (cluster-robust error, C - 1 degrees
    of freedom). Otherwise: bias-corrected and accelerated cluster bootstrap (Efron 1987), seeded.
    Raises StatisticsError for no values, NaN or infinity, or unequal lengths.
    """
    grouped = group(checked(values), clusters)
    mean = grouped.mean
    num_clusters = len(grouped.sizes_C)
    is_small = num_clusters < MIN_BOOTSTRAP_CLUSTERS
    low: float | None = None
    high: float | None = None
    if num_clusters > 1:
        low, high = (_student_t if is_small else _bca_bootstrap)(grouped, mean, confidence)
    method = "student_t" if is_small else "bca_cluster_bootstrap"
    return Interval(mean, low, high, len(values), num_clusters, method, num_clusters < MIN_CLUSTERS)


def proportion_interval(num_successes: int, num_trials: int, confidence: float = 0.95) -> Interval:
    """Clopper-Pearson interval of k successes in n independent trials.

    Raises StatisticsError unless 0 <= k <= n and n > 0.
    """
    if not 0 <= num_successes <= num_trials or num_trials == 0:
        raise StatisticsError(
            f"{num_successes} of {num_trials} is no proportion; need 0 <= k <= n and n > 0."
        )
    from scipy import stats

    exact = stats.binomtest(num_successes, num_trials).proportion_ci(confidence, method="exact")
    return Interval(
        mean=num_successes / num_trials,
        low=float(exact.low),
        high=float(exact.high),
        num_items=num_trials,
        num_clusters=num_trials,
        method="clopper_pearson",
        is_too_few=num_trials < MIN_CLUSTERS,
    )


def paired_difference(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95
) -> PairedDifference:
    """Mean of a - b over paired items; `a`, `b` and `clusters` are in the same order.

    Too few below 50 clusters or 6 items that differ. Raises StatisticsError as `mean_interval` does.
    """
    differences = paired_values(a, b)
    return PairedDifference.of(mean_interval(differences.tolist(), clusters, confidence), differences)


def paired_values(a: Sequence[float], b: Sequence[float]) -> FloatArray:
    """a - b, item by item; StatisticsError for unequal lengths, or as `checked`."""
    if len(a) != len(b):
        raise StatisticsError(f"{len(a)} values cannot be paired with {len(b)}; keep the items both have.")
    return checked(a) - checked(b)


def checked(values: Sequence[float]) -> FloatArray:
    """The values as an array; StatisticsError for none of them, NaN or infinity."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise StatisticsError("there is nothing to aggregate; a task without scored items has no mean.")
    if not np.isfinite(array).all():
        raise StatisticsError("a value is NaN or infinite; leave unscored items out and report their number.")
    return array


def group(values: FloatArray, clusters: Sequence[Hashable]) -> Clusters:
    """Items by cluster; StatisticsError unless there is one label a value."""
    if len(clusters) != len(values):
        raise StatisticsError(f"{len(values)} values have {len(clusters)} cluster labels; give one for each.")
    place: dict[Hashable, int] = {}
    index = [place.setdefault(label, len(place)) for label in clusters]
    sums_C = np.bincount(index, weights=values).astype(np.float64)
    sizes_C = np.bincount(index).astype(np.float64)
    order = np.lexsort((sizes_C, sums_C))  # seeded draws pick clusters by place: another order, other draws
    return Clusters(sums_C[order], sizes_C[order])


def cluster_error(clusters: Clusters) -> float:
    """Cluster-robust standard error of the mean over items; needs two clusters."""
    num = len(clusters.sizes_C)
    residuals_C = clusters.sums_C - clusters.sizes_C * clusters.mean
    return float(np.sqrt(num / (num - 1) * np.sum(residuals_C**2)) / clusters.sizes_C.sum())


def resampled_means(clusters: Clusters, stream: int = 0) -> FloatArray:
    """Means of 9,999 draws of whole clusters with replacement; other `stream`s are other draws, seeded all the same."""
    return np.concatenate(
        [
            clusters.sums_C[drawn_RC].sum(axis=1) / clusters.sizes_C[drawn_RC].sum(axis=1)
            for drawn_RC in drawn_clusters(len(clusters.sizes_C), stream)
        ]
    )


def drawn_clusters(
    num_clusters: int, stream: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Iterator[NDArray[np.int64]]:
    """The places of the clusters in each resample, some resamples at a time."""
    rng = np.random.default_rng(_BOOTSTRAP_SEED + stream)
    batch = max(1, _MAX_DRAWN_INDICES // num_clusters)
    for start in range(0, num_resamples, batch):
        yield rng.integers(num_clusters, size=(min(batch, num_resamples - start), num_clusters))


def bca_levels(means_R: FloatArray, mean: FloatArray, pull_C: FloatArray, confidence: float) -> FloatArray:
    """The two quantiles of the resampled means at which Efron's BCa interval (1987) ends; 0 and 1 without a spread.

    R resampled means, the mean itself, and each cluster's pull on it; further axes before R and C are as many data sets,
    (..., R), (...,) and (..., C), which give (..., 2).
    """
    from scipy import stats

    below, up_to = means_R < mean[..., None], means_R <= mean[..., None]
    share_below = (below.mean(axis=-1) + up_to.mean(axis=-1)) / 2
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    with np.errstate(divide="ignore", invalid="ignore"):  # where every cluster is alike
        acceleration = (pull_C**3).sum(axis=-1) / (6 * (pull_C**2).sum(axis=-1) ** 1.5)
        bias = stats.norm.ppf(share_below)[..., None]
        normal = bias + stats.norm.ppf(tails)
        levels = stats.norm.cdf(bias + normal / (1 - acceleration[..., None] * normal))
    return np.where(np.isfinite(levels), levels, tails > 0.5)  # NaN: there is no spread to correct


def bca_ends(means_R: FloatArray, mean: float, pull_C: FloatArray, confidence: float) -> tuple[float, float]:
    """Ends of the BCa interval of one data set, from its resampled means in any order."""
    low, high = np.quantile(means_R, bca_levels(means_R, np.asarray(mean), pull_C, confidence))
    return float(low), float(high)


def _student_t(clusters: Clusters, mean: float, confidence: float) -> tuple[float, float]:
    from scipy import stats  # here as elsewhere: importing scipy takes 0.7 s, which --help would wait for

    freedom = len(clusters.sizes_C) - 1
    half_width = float(stats.t.ppf((1 + confidence) / 2, df=freedom) * cluster_error(clusters))
    return mean - half_width, mean + half_width


def _bca_bootstrap(clusters: Clusters, mean: float, confidence: float) -> tuple[float, float]:
    without_C = (clusters.sums_C.sum() - clusters.sums_C) / (clusters.sizes_C.sum() - clusters.sizes_C)
    # In one step: scipy's BCa recomputes the statistic without each cluster in turn, which is quadratic in clusters.
    pull_C = without_C.mean() - without_C
    return bca_ends(resampled_means(clusters), mean, pull_C, confidence)
