"""No worse than a margin: shown, refuted, or not resolved by this many items.

a - b is a change for the better where it is positive; turn the sign of what is better when lower. Both sides read the
95 % interval, so each is a one-sided test of 2.5 %: at 5 %, passes were wrong up to 15 % of the time where losses are
rare and one-sided (docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluators.statistics.intervals import (
    MIN_CLUSTERS,
    MIN_DISCORDANT_PAIRS,
    FloatArray,
    PairedDifference,
    StatisticsError,
    checked,
    cluster_error,
    group,
    paired_difference,
    proportion_interval,
)
from evaluators.statistics.macro_average import TaskPairs, mean_and_error

ONE_SIDED_ALPHA = 0.025
POWER = 0.8
_MAX_NEEDED_CLUSTERS = 10_000_000

MarginVerdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, slots=True)
class MarginResult:
    """Whether a - b stays above -margin. `worst` and `best` are its one-sided 97.5 % bounds, None if there are none.

    "pass": `worst` is above -margin. "fail": `best` is below it, so the loss is significantly more than the margin.
    `reason` says in words why it is "inconclusive".
    """

    margin: float
    mean: float
    worst: float | None
    best: float | None
    verdict: MarginVerdict
    reason: str


def no_worse_than(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable],
    margin: float,
    largest_loss: float | None = None,
) -> MarginResult:
    """One-sided test that a is at most `margin` below b on average, all in the same order and unit.

    `largest_loss` is what one item can lose at most, such as 1 for a score (see `judge_margin`).
    Raises StatisticsError for a margin that is not above 0, or as `paired_difference`.
    """
    return judge_margin(paired_difference(a, b, clusters), margin, largest_loss)


def judge_margin(
    difference: PairedDifference, margin: float, largest_loss: float | None = None
) -> MarginResult:
    """Decide from a 95 % interval, of a task or of a mean over tasks (`macro_difference`).

    Where fewer than 6 items differ the interval means nothing. If items are contexts and `largest_loss` is given, the
    exact upper bound of the share of items that lose stands in: 0 of 200 is at most 1.8 %. It can pass, never fail.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise StatisticsError(f"a margin of {margin} allows nothing; give one above 0.")
    interval = difference.interval
    worst, best = interval.low, interval.high
    reason = too_few_reason(difference)
    if reason and largest_loss is not None and _is_bounded(difference):
        losing = proportion_interval(difference.num_lower, interval.num_items)
        assert losing.high is not None
        # `best` goes: the bound holds for losses alone, so from here on nothing can be called a fail.
        worst, best = -largest_loss * losing.high, None
        reason = "" if worst > -margin else reason
    verdict: MarginVerdict = "inconclusive"
    if not reason and worst is not None:
        if worst > -margin:
            verdict = "pass"
        elif best is not None and best < -margin:
            verdict = "fail"
        else:
            reason = f"these {interval.num_clusters} contexts do not resolve the margin"
    return MarginResult(margin, interval.mean, worst, best, verdict, reason)


def _is_bounded(difference: PairedDifference) -> bool:
    """Whether only the differing items are too few, and items are independent."""
    interval = difference.interval
    return not interval.is_too_few and interval.num_items == interval.num_clusters


def too_few_reason(difference: PairedDifference) -> str:
    """What there is too little of for a verdict, with its count; empty when there is enough."""
    num_clusters = difference.interval.num_clusters
    if num_clusters < MIN_CLUSTERS:
        return f"too few: {num_clusters} contexts of {MIN_CLUSTERS}"
    if difference.is_too_few:
        num_discordant = difference.num_higher + difference.num_lower
        return f"too few: {num_discordant} items differ, of {MIN_DISCORDANT_PAIRS}"
    return ""


def detectable_margin(
    differences: Sequence[float], clusters: Sequence[Hashable], power: float = POWER
) -> float:
    """The smallest margin that `no_worse_than` passes with probability `power` when nothing was lost.

    From the cluster-robust error of differences like these; needs two clusters. Raises StatisticsError.
    """
    grouped = group(checked(differences), clusters)
    num = len(grouped.sizes_C)
    if num < 2:
        raise StatisticsError("one cluster says nothing about the spread; give at least two.")
    return _error_multiples(num, power) * cluster_error(grouped)


def needed_clusters(
    differences: Sequence[float], clusters: Sequence[Hashable], margin: float, power: float = POWER
) -> int:
    """How many clusters like these `margin` needs, at least the 50 of any verdict; StatisticsError above ten million."""
    if not (math.isfinite(margin) and margin > 0):
        raise StatisticsError(f"a margin of {margin} allows nothing; give one above 0.")
    grouped = group(checked(differences), clusters)
    if len(grouped.sizes_C) < 2:
        raise StatisticsError("one cluster says nothing about the spread; give at least two.")
    spread = cluster_error(grouped) * math.sqrt(len(grouped.sizes_C))
    return _first_enough(spread, margin, power)


def _first_enough(spread: float, margin: float, power: float) -> int:
    """Bisection: the error of the mean falls steadily with the number of clusters."""
    # There is no closed form: the quantiles of t depend on the number of clusters, too.
    low, high = MIN_CLUSTERS, _MAX_NEEDED_CLUSTERS
    if _error_multiples(high, power) * spread / math.sqrt(high) > margin:
        raise StatisticsError(f"a margin of {margin} needs more than {high} clusters of this spread.")
    while low < high:
        middle = (low + high) // 2
        is_enough = _error_multiples(middle, power) * spread / math.sqrt(middle) <= margin
        low, high = (low, middle) if is_enough else (middle + 1, high)
    return low


def _error_multiples(num_clusters: int, power: float) -> float:
    """Standard errors between 0 and the margin: one quantile for the test, one for its power."""
    from scipy import stats

    quantiles: FloatArray = stats.t.ppf([1 - ONE_SIDED_ALPHA, power], df=num_clusters - 1)
    return float(quantiles.sum())


def excess_loss_p_value(tasks: Sequence[TaskPairs], margin: float) -> float:
    """One-sided p of a - b on average being no lower than -margin; more is better, one task or a mean over several.

    Cluster-robust Student t, over tasks with Satterthwaite's degrees of freedom: the interval `no_worse_than` reads below
    200 clusters, turned round. One cluster in a task says nothing: 1. Where every cluster loses the same there is no
    spread to test against: 0 or 1. Raises StatisticsError for no task, or as `mean_interval` does for one of them.
    """
    estimate = mean_and_error(tasks)
    if estimate.error is None:
        return 1.0
    excess = estimate.mean + margin
    if estimate.error == 0:
        return 0.0 if excess < 0 else 1.0
    from scipy import stats

    return float(stats.t.cdf(excess / estimate.error, df=estimate.freedom))
