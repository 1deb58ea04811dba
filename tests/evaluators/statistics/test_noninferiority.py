"""A margin is met, missed, or not resolved; how many items resolve it is the same arithmetic turned round."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluators.statistics.intervals import StatisticsError, paired_difference
from evaluators.statistics.macro_average import TaskPairs, macro_difference
from evaluators.statistics.noninferiority import (
    MarginResult,
    detectable_margin,
    excess_loss_p_value,
    needed_clusters,
    no_worse_than,
)


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def judged(differences: np.ndarray, margin: float, largest_loss: float | None = None) -> MarginResult:
    num = len(differences)
    return no_worse_than(differences.tolist(), [0.0] * num, range(num), margin, largest_loss)


def test_bounds_are_the_one_sided_t_tests_of_the_margin(rng: np.random.Generator) -> None:
    differences = rng.normal(size=120)
    got = judged(differences, 0.1)
    assert got.worst is not None and got.best is not None
    for bound, side in ((got.worst, "greater"), (got.best, "less")):
        assert stats.ttest_1samp(differences, bound, alternative=side).pvalue == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("mean", "verdict"), [(0.0, "pass"), (-0.5, "inconclusive"), (-1.0, "fail"), (2.0, "pass")]
)
def test_verdict_is_where_the_interval_lies(rng: np.random.Generator, mean: float, verdict: str) -> None:
    noise = rng.normal(size=100)
    differences = (noise - noise.mean()) / noise.std() + mean
    assert judged(differences, 0.5).verdict == verdict


def test_a_loss_inside_the_margin_passes_though_it_is_real(rng: np.random.Generator) -> None:
    differences = -0.1 + 0.05 * rng.normal(size=100)
    assert paired_difference(differences.tolist(), [0.0] * 100, range(100)).verdict == "lower"
    assert judged(differences, 0.2).verdict == "pass"


@pytest.mark.parametrize(
    ("num_items", "num_lower", "said"), [(49, 49, "49 contexts"), (60, 5, "5 items differ")]
)
def test_too_few_is_inconclusive_and_says_the_count(num_items: int, num_lower: int, said: str) -> None:
    got = judged(np.array([-1.0] * num_lower + [0.0] * (num_items - num_lower)), 0.5)
    assert got.verdict == "inconclusive" and said in got.reason


@pytest.mark.parametrize(("num_items", "num_lower", "verdict"), [(200, 0, "pass"), (200, 1, "inconclusive")])
def test_hardly_any_flip_among_many_items_is_bounded_exactly(
    num_items: int, num_lower: int, verdict: str
) -> None:
    differences = np.array([-1.0] * num_lower + [0.0] * (num_items - num_lower))
    got = judged(differences, 0.02, largest_loss=1.0)
    expected = stats.binomtest(num_lower, num_items).proportion_ci(0.95).high
    assert (got.verdict, got.worst) == (verdict, pytest.approx(-expected))
    assert judged(differences, 0.02).verdict == "inconclusive"


def test_the_margin_that_n_clusters_resolve_needs_n_clusters(rng: np.random.Generator) -> None:
    differences = rng.normal(size=150).tolist()
    margin = detectable_margin(differences, range(150))
    assert needed_clusters(differences, range(150), margin * 1.0001) == 150
    assert needed_clusters(differences, range(150), margin * 0.5) == pytest.approx(600, abs=8)
    assert needed_clusters(differences, range(150), margin * 100) == 50


def test_power_is_what_it_is_said_to_be(rng: np.random.Generator) -> None:
    """Four of five data sets without a loss pass the margin that one of them resolves."""
    margin = (stats.t.ppf(0.975, 99) + stats.t.ppf(0.8, 99)) / 10  # of a spread of 1 over 100 clusters
    num_passed = sum(judged(rng.normal(size=100), margin).verdict == "pass" for _ in range(400))
    assert num_passed / 400 == pytest.approx(0.8, abs=0.1)  # 5 standard errors


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan")])
def test_a_margin_that_allows_nothing_is_refused(margin: float) -> None:
    with pytest.raises(StatisticsError, match="above 0"):
        judged(np.zeros(60), margin)
    with pytest.raises(StatisticsError, match="above 0"):
        needed_clusters([0.0, 1.0], range(2), margin)


def test_one_cluster_or_an_impossible_margin_is_refused() -> None:
    for function in (detectable_margin, lambda *it: needed_clusters(*it, margin=1.0)):
        with pytest.raises(StatisticsError, match="at least two"):
            function([0.0, 1.0], ["a", "a"])
    with pytest.raises(StatisticsError, match="more than 10000000"):
        needed_clusters([0.0, 1.0], range(2), margin=1e-9)


def drawn(rng: np.random.Generator, num_clusters: int, loss: float) -> TaskPairs:
    """One to three items a cluster, more is better, a being lower by `loss` on average."""
    clusters = np.repeat(np.arange(num_clusters), rng.integers(1, 4, size=num_clusters))
    b = rng.normal(size=len(clusters))
    return TaskPairs((b - loss + rng.normal(scale=0.3, size=len(b))).tolist(), b.tolist(), clusters.tolist())


def test_single_items_are_a_t_test_against_the_margin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=60), rng.normal(size=60)
    expected = stats.ttest_1samp(a - b, popmean=-0.1, alternative="less").pvalue
    assert excess_loss_p_value([TaskPairs(a, b, range(60))], 0.1) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.2, 0.4])
def test_a_fail_is_a_p_below_two_and_a_half_per_cent(seed: int, loss: float) -> None:
    for draw in range(20):
        task = drawn(np.random.default_rng([seed, draw]), 80, loss)
        is_fail = no_worse_than(task.a, task.b, task.clusters, 0.1).verdict == "fail"
        assert is_fail == (excess_loss_p_value([task], 0.1) < 0.025)


def test_over_tasks_it_turns_the_interval_of_their_mean_round(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = [drawn(rng, 60, 0.1), drawn(rng, 90, 0.4)]
    high = macro_difference(tasks).interval.high
    assert high is not None and excess_loss_p_value(tasks, -high) == pytest.approx(0.025)


def test_without_a_spread_it_is_certain_and_one_cluster_says_nothing() -> None:
    same = TaskPairs([0.0] * 3, [0.5] * 3, range(3))
    assert [excess_loss_p_value([same], margin) for margin in (0.4, 0.6)] == [0.0, 1.0]
    assert excess_loss_p_value([TaskPairs([0.0], [0.5], ["x"])], 0.1) == 1.0
    with pytest.raises(StatisticsError):
        excess_loss_p_value([], 0.1)
