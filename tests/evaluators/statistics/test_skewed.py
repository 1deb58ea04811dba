"""Intervals of skewed means: a slow reference item by item, t where nothing is skewed, and what more skewness may do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import optimize, stats

from evaluators.statistics.intervals import (
    Clusters,
    StatisticsError,
    cluster_error,
    group,
    mean_interval,
    paired_difference,
)
from evaluators.statistics.skewed import (
    MIN_SKEWED_CLUSTERS,
    linear_values,
    skewed_difference,
    skewed_difference_ends,
    skewed_ends,
    skewed_mean_interval,
)


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def slow_ends(values: Sequence[float]) -> tuple[float, float]:
    """Hall's statistic T + g T² / 3 + g² T³ / 27 + g / 6n, solved for the mean by bisection; g: skewness / sqrt(n)."""
    num = len(values)
    mean = math.fsum(values) / num
    second, third = (math.fsum((it - mean) ** power for it in values) / num for power in (2, 3))
    error = math.sqrt(second / (num - 1))
    g = third / second**1.5 * math.sqrt(num * (num - 1)) / (num - 2) / math.sqrt(num)
    quantile = float(stats.t.ppf(0.975, num - 1))

    def solved(g: float, wanted: float) -> float:
        """The studentized mean T at which Hall's statistic is `wanted`: it never falls as T grows."""

        def excess(t: float) -> float:
            return t + g * t**2 / 3 + g**2 * t**3 / 27 + g / 6 - wanted

        return optimize.brentq(excess, -200, 200, xtol=1e-12)

    # Away from the tail as it is; into the tail with more skewness, and never nearer than with less.
    enlarged = abs(g) * (1 + 8.5 / num)
    into_tail = max(-solved(it, -quantile) for it in np.linspace(1e-9, enlarged, 4_000))
    away = solved(abs(g), quantile)
    low, high = (away, into_tail) if g > 0 else (into_tail, away)
    return mean - low * error, mean + high * error


@pytest.mark.parametrize("num", [20, 33, 120])
@pytest.mark.parametrize("sign", [1, -1])
def test_ends_are_halls_solved_slowly(rng: np.random.Generator, num: int, sign: int) -> None:
    for sigma in (0.1, 0.8, 2.0):
        values = sign * rng.lognormal(sigma=sigma, size=num)
        low, high = skewed_ends(values)
        # The slow maximum is over a grid, and Hall's end rises ever more steeply towards it.
        expected = pytest.approx(slow_ends(values.tolist()), abs=0.01 * float(high - low))
        assert (float(low), float(high)) == expected


def test_without_skewness_it_is_students(rng: np.random.Generator) -> None:
    half = rng.random(30)
    values = np.concatenate([5 + half, 5 - half])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert tuple(map(float, skewed_ends(values))) == pytest.approx((expected.low, expected.high), rel=1e-5)


def test_sign_scale_and_shift_move_the_interval_as_they_move_the_values(rng: np.random.Generator) -> None:
    values = rng.lognormal(sigma=1.5, size=40)
    low, high = map(float, skewed_ends(values))
    for ends_of in (skewed_ends, skewed_difference_ends):
        low, high = map(float, ends_of(values))
        assert tuple(map(float, ends_of(3 - 2e-6 * values))) == pytest.approx(
            (3 - 2e-6 * high, 3 - 2e-6 * low)
        )


def test_many_data_sets_at_once_are_each_alone(rng: np.random.Generator) -> None:
    values_DC = rng.lognormal(sigma=2, size=(7, 25)) * rng.choice([-1, 1], size=(7, 1))
    for ends_of in (skewed_ends, skewed_difference_ends):
        together = ends_of(values_DC)
        for dataset, values_C in enumerate(values_DC):
            alone = ends_of(values_C)
            assert (together.low[dataset], together.high[dataset]) == pytest.approx(alone)


def test_more_of_a_tail_never_brings_its_end_nearer_in_standard_errors(rng: np.random.Generator) -> None:
    body = rng.random(30)
    reach = []
    for largest in (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0):
        values = np.append(body, largest)
        error = values.std(ddof=1) / math.sqrt(len(values))
        reach.append((float(skewed_ends(values).high) - values.mean()) / error)
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(reach))
    t = float(stats.t.ppf(0.975, 30))
    assert 3.5 * t < reach[-1] < 4.5 * t  # there is an end to it


def test_a_difference_is_never_told_more_narrowly_than_by_t(rng: np.random.Generator) -> None:
    a, b = rng.lognormal(sigma=1.5, size=60), rng.lognormal(sigma=1.5, size=60)
    of_t, got = paired_difference(a.tolist(), b.tolist(), range(60)), skewed_difference(a, b, range(60))
    low, high = of_t.interval.low, of_t.interval.high
    assert (
        low is not None
        and high is not None
        and got.interval.low is not None
        and got.interval.high is not None
    )
    assert got.interval.low < low and high < got.interval.high
    assert (got.num_higher, got.num_lower, got.num_equal) == (of_t.num_higher, of_t.num_lower, of_t.num_equal)
    back = skewed_difference(b, a, range(60)).interval
    assert (back.low, back.high) == pytest.approx((-got.interval.high, -got.interval.low))


def test_linear_values_have_the_mean_and_the_robust_error_of_the_items(rng: np.random.Generator) -> None:
    sizes = rng.integers(1, 6, size=30)
    clusters = Clusters(rng.lognormal(size=30) * sizes, sizes.astype(float))
    values = linear_values(clusters)
    assert values.mean() == pytest.approx(clusters.mean)
    assert values.std(ddof=1) / math.sqrt(30) == pytest.approx(cluster_error(clusters))


def test_items_on_a_context_count_as_one(rng: np.random.Generator) -> None:
    values = rng.lognormal(sigma=1.5, size=25)
    once = skewed_mean_interval(values.tolist(), range(25))
    tripled = skewed_mean_interval(np.repeat(values, 3).tolist(), np.repeat(range(25), 3).tolist())
    assert (tripled.low, tripled.high) == pytest.approx((once.low, once.high))
    assert (tripled.num_items, tripled.num_clusters, tripled.method) == (75, 25, "hall_skewed_t")
    assert group(values, range(25)).mean == pytest.approx(once.mean)


@pytest.mark.parametrize("num", [1, 2, 3, MIN_SKEWED_CLUSTERS - 1])
def test_too_few_contexts_have_a_mean_and_a_reason_but_no_ends(rng: np.random.Generator, num: int) -> None:
    values = rng.lognormal(size=num).tolist()
    got = skewed_mean_interval(values, range(num))
    assert (got.low, got.high, got.ends, got.is_too_few) == (None, None, None, True)
    assert got.reason == "under 20 contexts" and got.mean == mean_interval(values, range(num)).mean
    difference = skewed_difference(values, [0.0] * num, range(num))
    assert difference.interval.ends is None and difference.verdict == "inconclusive"


@pytest.mark.parametrize("num", [MIN_SKEWED_CLUSTERS, 300])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e-12])
def test_equal_values_have_no_spread(num: int, value: float) -> None:
    got = skewed_mean_interval([value] * num, range(num))
    assert got.has_no_spread and got.ends is None and got.reason == ""
    assert skewed_difference([value] * num, [value] * num, range(num)).interval.has_no_spread


def test_skewed_means_are_covered_where_t_misses_them(rng: np.random.Generator) -> None:
    """Gamma of shape 0.12, whose mean t covers in 78 % at 20; 800 data sets have standard errors of 1.5 and 0.9 points."""
    values_DC = rng.gamma(0.12, size=(800, 20))
    low_D, high_D = skewed_ends(values_DC)
    assert ((low_D <= 0.12) & (high_D >= 0.12)).mean() > 0.89
    half_D = stats.t.ppf(0.975, 19) * values_DC.std(axis=1, ddof=1) / math.sqrt(20)
    assert (np.abs(values_DC.mean(axis=1) - 0.12) <= half_D).mean() < 0.86


def test_nonsense_is_refused_as_by_any_mean() -> None:
    with pytest.raises(StatisticsError, match="nothing to aggregate"):
        skewed_mean_interval([], [])
    with pytest.raises(StatisticsError, match="2 values cannot be paired with 1"):
        skewed_difference([1.0, 2.0], [1.0], ["a", "b"])
