"""The p-value of a loss beyond the margin agrees with the interval below 200 clusters, and with a slow computation."""

import numpy as np
import pytest
from scipy import stats

from evaluators.statistics.intervals import StatisticsError
from evaluators.statistics.macro_average import TaskPairs, macro_difference
from evaluators.statistics.noninferiority import excess_loss_p_value, no_worse_than


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
