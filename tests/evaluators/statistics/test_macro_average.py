"""Tasks weigh the same, contexts are drawn within their task, and one task is the plain paired difference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluators.statistics.intervals import StatisticsError, paired_difference
from evaluators.statistics.macro_average import TaskPairs, macro_difference, macro_test
from evaluators.statistics.paired_tests import sign_flip_p_value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def pairs_of(differences: np.ndarray, num_clusters: int | None = None) -> TaskPairs:
    clusters = [index % (num_clusters or len(differences)) for index in range(len(differences))]
    return TaskPairs(differences.tolist(), [0.0] * len(differences), clusters)


def test_every_task_weighs_the_same() -> None:
    got = macro_difference([pairs_of(np.ones(300)), pairs_of(np.zeros(10))])
    assert got.interval.mean == 0.5
    assert (got.num_higher, got.num_lower, got.num_equal) == (300, 0, 10)
    assert (got.interval.num_items, got.interval.num_clusters) == (310, 310)


@pytest.mark.parametrize("num_items", [30, 250])
def test_one_task_is_its_paired_difference(rng: np.random.Generator, num_items: int) -> None:
    task = pairs_of(rng.normal(size=num_items))
    got, expected = macro_difference([task]), paired_difference(task.a, task.b, task.clusters)
    assert got.interval.method == expected.interval.method
    ends = (expected.interval.low, expected.interval.high)
    assert (got.interval.low, got.interval.high) == pytest.approx(ends, abs=1e-12)


def test_two_small_tasks_of_single_items_agree_with_welch(rng: np.random.Generator) -> None:
    """(x + y) / 2 has half the error of x - (-y), which is Welch's."""
    x, y = rng.normal(size=12), rng.normal(scale=3, size=25)
    expected = stats.ttest_ind(x, -y, equal_var=False).confidence_interval(0.95)
    got = macro_difference([pairs_of(x), pairs_of(y)]).interval
    assert (got.low, got.high) == pytest.approx((expected.low / 2, expected.high / 2))
    assert got.method == "student_t" and got.is_too_few


def test_large_tasks_are_resampled_each_for_itself(rng: np.random.Generator) -> None:
    tasks = [
        rng.normal(size=220),
        rng.normal(loc=50, size=200),
    ]  # pooled, the spread would be that of the tasks
    got = macro_difference([pairs_of(it) for it in tasks]).interval
    error = np.sqrt(sum(it.var(ddof=1) / len(it) for it in tasks)) / 2
    assert got.low is not None and got.high is not None
    assert got.method == "bca_cluster_bootstrap"
    assert got.high - got.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_test_flips_whole_clusters_by_their_share_of_the_mean(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=8), rng.normal(size=12)
    by_hand = np.concatenate([x / 8, (y[:4] + y[4:8] + y[8:]) / 12])
    assert macro_test([pairs_of(x), pairs_of(y, 4)]).p_value == sign_flip_p_value(by_hand)


def test_order_of_tasks_and_sides_change_nothing(rng: np.random.Generator) -> None:
    tasks = [pairs_of(rng.normal(size=num)) for num in (15, 20, 30)]
    swapped = [TaskPairs(it.b, it.a, it.clusters) for it in reversed(tasks)]
    got, other = macro_difference(tasks).interval, macro_difference(swapped).interval
    assert got.low is not None and got.high is not None
    assert (other.mean, other.low, other.high) == pytest.approx((-got.mean, -got.high, -got.low))
    assert macro_test(tasks).p_value == pytest.approx(macro_test(swapped).p_value)


def test_one_cluster_in_a_task_leaves_no_interval(rng: np.random.Generator) -> None:
    got = macro_difference([pairs_of(rng.normal(size=4), 1), pairs_of(rng.normal(size=70))])
    assert (got.interval.low, got.interval.high) == (None, None)
    assert got.verdict == "inconclusive"


def test_nothing_has_no_mean() -> None:
    for function in (macro_difference, macro_test):
        with pytest.raises(StatisticsError, match="no task"):
            function([])
    with pytest.raises(StatisticsError, match="nothing to aggregate"):
        macro_difference([TaskPairs([], [], [])])
