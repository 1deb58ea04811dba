"""The mean over tasks, with its interval and its test: every task weighs the same, whatever its number of items.

Contexts are resampled within each task. Two tasks on the same texts are taken as independent.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from evaluators.statistics.intervals import (
    MIN_BOOTSTRAP_CLUSTERS,
    MIN_CLUSTERS,
    Clusters,
    Interval,
    PairedDifference,
    StatisticsError,
    bca_ends,
    cluster_error,
    group,
    paired_values,
    resampled_means,
)
from evaluators.statistics.paired_tests import PairedTest, sign_flip_p_value


@dataclass(frozen=True, slots=True)
class TaskPairs:
    """Paired values of one task, in the same order of items."""

    a: Sequence[float]
    b: Sequence[float]
    clusters: Sequence[Hashable]


class MeanAndError(NamedTuple):
    """A mean over tasks with its cluster-robust standard error and Satterthwaite's degrees of freedom.

    `error` is None where a task has a single cluster.
    """

    mean: float
    error: float | None
    freedom: float


def macro_difference(tasks: Sequence[TaskPairs], confidence: float = 0.95) -> PairedDifference:
    """Mean over tasks of each task's mean a - b, with a paired interval; counts are over all tasks.

    Every task with 200 clusters or more: bias-corrected and accelerated cluster bootstrap, stratified by task. Otherwise
    Student t with Satterthwaite's degrees of freedom ("student_t"). Too few below 50 clusters in all or 6 items that
    differ. Raises StatisticsError for no task, or as `mean_interval` does for one of them.
    """
    differences = [paired_values(task.a, task.b) for task in tasks]
    if not differences:
        raise StatisticsError("there is no task to take a mean over.")
    strata = [group(values, task.clusters) for values, task in zip(differences, tasks, strict=True)]
    return PairedDifference.of(_macro_interval(strata, confidence), np.concatenate(differences))


def mean_and_error(tasks: Sequence[TaskPairs]) -> MeanAndError:
    """The mean over tasks of a - b with its standard error; raises StatisticsError as `macro_difference` does."""
    strata = [group(paired_values(task.a, task.b), task.clusters) for task in tasks]
    if not strata:
        raise StatisticsError("there is no task to take a mean over.")
    mean = float(np.mean([stratum.mean for stratum in strata]))
    if min(len(stratum.sizes_C) for stratum in strata) < 2:
        return MeanAndError(mean, None, 0.0)
    return MeanAndError(mean, *_error_and_freedom(strata))


def macro_test(tasks: Sequence[TaskPairs]) -> PairedTest:
    """Two-sided test that the mean over tasks is 0: the signs of whole clusters are flipped, weighed as in the mean."""
    strata = [group(paired_values(task.a, task.b), task.clusters) for task in tasks]
    if not strata:
        raise StatisticsError("there is no task to take a mean over.")
    # What each cluster adds to the mean over tasks: the total that is flipped is then that mean.
    shares = [stratum.sums_C / (stratum.sizes_C.sum() * len(strata)) for stratum in strata]
    return PairedTest(sign_flip_p_value(np.concatenate(shares)), "cluster_sign_flip")


def _macro_interval(strata: Sequence[Clusters], confidence: float) -> Interval:
    numbers = [len(stratum.sizes_C) for stratum in strata]
    mean = float(np.mean([stratum.mean for stratum in strata]))
    is_small = min(numbers) < MIN_BOOTSTRAP_CLUSTERS
    low: float | None = None
    high: float | None = None
    if min(numbers) > 1:
        low, high = (_satterthwaite if is_small else _stratified_bca)(strata, mean, confidence)
    return Interval(
        mean=mean,
        low=low,
        high=high,
        num_items=int(sum(stratum.sizes_C.sum() for stratum in strata)),
        num_clusters=sum(numbers),
        method="student_t" if is_small else "bca_cluster_bootstrap",
        is_too_few=sum(numbers) < MIN_CLUSTERS,
    )


def _satterthwaite(strata: Sequence[Clusters], mean: float, confidence: float) -> tuple[float, float]:
    from scipy import stats

    error, freedom = _error_and_freedom(strata)
    half_width = float(stats.t.ppf((1 + confidence) / 2, df=freedom) * error)
    return mean - half_width, mean + half_width


def _error_and_freedom(strata: Sequence[Clusters]) -> tuple[float, float]:
    """Standard error of the mean over strata of two clusters or more, and Satterthwaite's degrees of freedom."""
    variances_S = np.array([cluster_error(stratum) ** 2 for stratum in strata])  # S: strata
    freedoms_S = np.array([len(stratum.sizes_C) - 1 for stratum in strata])
    total = float(variances_S.sum())
    freedom = float(total**2 / np.sum(variances_S**2 / freedoms_S)) if total else float(freedoms_S.sum())
    return float(np.sqrt(total)) / len(strata), freedom


def _stratified_bca(strata: Sequence[Clusters], mean: float, confidence: float) -> tuple[float, float]:
    """Efron's interval with the empirical influences of all strata (Davison & Hinkley 1997, section 5.3.2)."""
    # A stream for each task: with the same draws, tasks with as many clusters would not be resampled independently.
    means_SR = [resampled_means(stratum, stream) for stream, stratum in enumerate(strata)]
    pull_C = np.concatenate([(it.sums_C - it.sizes_C * it.mean) / it.sizes_C.sum() for it in strata])
    return bca_ends(np.mean(means_SR, axis=0), mean, pull_C, confidence)
