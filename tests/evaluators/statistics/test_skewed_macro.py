"""The mean over tasks of differences that a few items carry: of one task nothing new, and covered where t misses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evaluators.statistics.intervals import StatisticsError
from evaluators.statistics.macro_average import TaskPairs, macro_difference
from evaluators.statistics.skewed import MIN_SKEWED_CLUSTERS, skewed_difference, skewed_macro_difference


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def pairs_of(rng: np.random.Generator, num: int, *, items_of_a_context: int = 1) -> TaskPairs:
    a, b = (rng.lognormal(sigma=1.5, size=num * items_of_a_context).tolist() for _ in range(2))
    return TaskPairs(a, b, np.repeat(range(num), items_of_a_context).tolist())


def values_of(got: Any) -> tuple[float | None, ...]:
    return (got.interval.mean, got.interval.low, got.interval.high)


@pytest.mark.parametrize("num", [MIN_SKEWED_CLUSTERS, 21, 37, 250])
def test_of_one_task_it_is_the_difference_of_that_task(rng: np.random.Generator, num: int) -> None:
    task = pairs_of(rng, num, items_of_a_context=2)
    got, expected = skewed_macro_difference([task]), skewed_difference(task.a, task.b, task.clusters)
    assert values_of(got) == pytest.approx(values_of(expected))
    assert (got.num_higher, got.num_lower, got.is_too_few, got.interval.num_items) == (
        expected.num_higher, expected.num_lower, expected.is_too_few, expected.interval.num_items,
    )  # fmt: skip
    assert got.interval.method == expected.interval.method == "widened_skewed_t"


def test_no_end_is_nearer_than_that_of_t_and_sides_may_be_swapped(rng: np.random.Generator) -> None:
    tasks = [pairs_of(rng, num) for num in (60, 30, 45)]
    of_t, got = macro_difference(tasks).interval, skewed_macro_difference(tasks).interval
    assert of_t.low is not None and of_t.high is not None and got.low is not None and got.high is not None
    assert got.mean == pytest.approx(of_t.mean)
    assert got.low < of_t.low and of_t.high < got.high
    back = skewed_macro_difference([TaskPairs(it.b, it.a, it.clusters) for it in tasks])
    assert values_of(back) == pytest.approx((-got.mean, -got.high, -got.low))


@pytest.mark.parametrize("numbers", [(19,), (60, 2), (7, 7)])
def test_where_they_are_worth_too_few_contexts_there_are_no_ends(
    rng: np.random.Generator, numbers: Sequence[int]
) -> None:
    tasks = [pairs_of(rng, num) for num in numbers]
    got = skewed_macro_difference(tasks)
    assert got.interval.ends is None and got.interval.reason == "under 20 contexts"
    assert got.interval.mean == pytest.approx(macro_difference(tasks).interval.mean)
    assert got.verdict == "inconclusive"


def test_equal_values_have_no_spread() -> None:
    task = TaskPairs([0.5] * 30, [0.5] * 30, range(30))
    assert skewed_macro_difference([task, task]).interval.has_no_spread


def test_means_over_tasks_are_covered_where_t_misses_them(rng: np.random.Generator) -> None:
    """Gamma of shape 0.12 on one side alone; 400 data sets have a standard error of 1.1 and 1.8 points."""
    num_held = {"t": 0, "skewed": 0}
    for _ in range(400):
        tasks = [
            TaskPairs(rng.gamma(0.12, size=num).tolist(), [0.0] * num, range(num)) for num in (15, 20, 15)
        ]
        got, of_t = skewed_macro_difference(tasks).interval, macro_difference(tasks).interval
        for name, it in (("t", of_t), ("skewed", got)):
            # Without ends nothing is claimed.
            num_held[name] += it.low is None or it.high is None or it.low <= 0.12 <= it.high
    assert num_held["skewed"] / 400 > 0.90
    assert num_held["t"] < num_held["skewed"]


def test_nonsense_is_refused_as_by_any_mean_over_tasks() -> None:
    with pytest.raises(StatisticsError, match="no task"):
        skewed_macro_difference([])
    with pytest.raises(StatisticsError, match="2 values cannot be paired with 1"):
        skewed_macro_difference([TaskPairs([1.0, 2.0], [1.0], ["a", "b"])])
