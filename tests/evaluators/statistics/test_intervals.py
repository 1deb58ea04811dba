"""Intervals agree with scipy where scipy has them, and say so when there is too little to judge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evaluators.statistics.intervals import (
    StatisticsError,
    mean_interval,
    paired_difference,
    proportion_interval,
    published_score,
)


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_single_items_give_the_ordinary_t_interval(rng: np.random.Generator) -> None:
    values = rng.normal(size=20)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    got = mean_interval(values.tolist(), range(20), confidence=0.9)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
    assert (got.method, got.is_too_few, got.num_clusters) == ("student_t", True, 20)


def test_doubling_every_item_of_a_cluster_adds_no_certainty(rng: np.random.Generator) -> None:
    values, clusters = rng.normal(size=12).tolist(), list(range(12))
    once = mean_interval(values, clusters)
    twice = mean_interval(values * 2, clusters * 2)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert (twice.num_items, twice.num_clusters) == (24, 12)


def test_mean_weighs_clusters_by_their_size() -> None:
    got = mean_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert got.mean == 0.75
    # residual sums are 3 * (1 - 0.75) and 1 * (0 - 0.75); error = sqrt(2 / 1 * (0.75² + 0.75²)) / 4
    half_width = stats.t.ppf(0.975, 1) * math.sqrt(2 * 2 * 0.75**2) / 4
    assert (got.low, got.high) == pytest.approx((0.75 - half_width, 0.75 + half_width))


def test_many_clusters_agree_with_scipys_bca_bootstrap() -> None:
    rng = np.random.default_rng(1)  # fixed: two bootstraps of fresh data differ now and then by chance
    values = rng.lognormal(size=200)  # skewed, so that bias and acceleration matter
    expected = stats.bootstrap((values,), np.mean, n_resamples=99_999, method="BCa", rng=rng)
    got = mean_interval(values.tolist(), range(200))
    low, high = expected.confidence_interval
    assert (got.method, got.is_too_few) == ("bca_cluster_bootstrap", False)
    assert (got.low, got.high) == pytest.approx(
        (low, high), abs=0.04 * (high - low)
    )  # 4 errors of 9,999 draws


def test_bootstrap_draws_whole_clusters(rng: np.random.Generator) -> None:
    cluster_values = rng.normal(size=200)
    once = mean_interval(cluster_values.tolist(), range(200))
    tenfold = mean_interval(np.repeat(cluster_values, 10).tolist(), np.repeat(range(200), 10).tolist())
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize("num_clusters", [70, 200])
def test_the_order_of_rows_changes_no_interval(rng: np.random.Generator, num_clusters: int) -> None:
    values, order = rng.random(num_clusters), rng.permutation(num_clusters)
    once = mean_interval(values.tolist(), range(num_clusters))
    again = mean_interval(values[order].tolist(), order.tolist())
    assert (again.low, again.high) == pytest.approx((once.low, once.high), abs=1e-12)


def test_interval_covers_the_true_mean_about_as_often_as_it_says(rng: np.random.Generator) -> None:
    num_covered = 0
    for _ in range(400):
        levels = rng.normal(size=10).repeat(4)
        values = levels + rng.normal(size=40)
        got = mean_interval(values.tolist(), np.repeat(range(10), 4).tolist())
        assert got.low is not None and got.high is not None
        num_covered += got.low <= 0 <= got.high
    assert 0.89 < num_covered / 400 < 0.99  # 5 standard errors of 0.95 at 400 trials


@pytest.mark.parametrize("num_clusters", [2, 49, 199, 200])
def test_equal_values_have_an_interval_without_width(num_clusters: int) -> None:
    got = mean_interval([0.1] * num_clusters, range(num_clusters))
    assert (got.low, got.high) == pytest.approx((0.1, 0.1))


def test_one_cluster_has_a_mean_but_no_interval() -> None:
    got = mean_interval([0.0, 1.0, 1.0, 1.0], ["a"] * 4)
    assert (got.mean, got.low, got.high, got.is_too_few) == (0.75, None, None, True)


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [([], [], "nothing to aggregate"), ([1.0], [], "0 cluster labels"), ([math.nan], ["a"], "NaN")],
)
def test_means_over_nothing_or_nonsense_are_refused(
    values: list[float], clusters: list[str], message: str
) -> None:
    with pytest.raises(StatisticsError, match=message):
        mean_interval(values, clusters)


def test_proportion_is_clopper_pearson_at_its_known_ends() -> None:
    none, every = proportion_interval(0, 20), proportion_interval(20, 20)
    assert (none.low, none.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert (every.low, every.high) == pytest.approx((0.025 ** (1 / 20), 1.0))
    assert none.is_too_few
    assert not proportion_interval(25, 50).is_too_few


@pytest.mark.parametrize(("num_successes", "num_trials"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_proportions_are_refused(num_successes: int, num_trials: int) -> None:
    with pytest.raises(StatisticsError, match=f"{num_successes} of {num_trials}"):
        proportion_interval(num_successes, num_trials)


def test_paired_difference_is_the_interval_of_differences(rng: np.random.Generator) -> None:
    a, b = rng.random(60), rng.random(60)
    got = paired_difference(a.tolist(), b.tolist(), range(60))
    assert got.interval == mean_interval((a - b).tolist(), range(60))
    assert got.num_higher + got.num_lower + got.num_equal == 60


def test_pairing_finds_a_drop_that_the_spread_of_items_would_hide(rng: np.random.Generator) -> None:
    a = rng.normal(scale=10, size=200)
    b = a + rng.normal(loc=0.5, scale=0.5, size=200)
    assert paired_difference(a.tolist(), b.tolist(), range(200)).verdict == "lower"
    assert paired_difference(b.tolist(), a.tolist(), range(200)).verdict == "higher"


@pytest.mark.parametrize(
    ("num_clusters", "num_discordant", "is_too_few"), [(49, 49, True), (60, 5, True), (60, 60, False)]
)
def test_verdict_needs_50_clusters_and_6_discordant_pairs(
    num_clusters: int, num_discordant: int, is_too_few: bool
) -> None:
    a = [1.0] * num_discordant + [0.0] * (num_clusters - num_discordant)
    got = paired_difference(a, [0.0] * num_clusters, range(num_clusters))
    assert got.is_too_few == is_too_few
    assert (got.verdict == "inconclusive") == is_too_few


def test_unequal_lengths_cannot_be_paired() -> None:
    with pytest.raises(StatisticsError, match="2 values cannot be paired with 1"):
        paired_difference([1.0, 2.0], [1.0], ["a", "b"])


def test_published_score_is_a_rounded_percentage_of_something() -> None:
    assert published_score([1.0, 0.0, 0.0]) == 33.33
    with pytest.raises(StatisticsError, match="nothing to aggregate"):
        published_score([])


@pytest.mark.parametrize("num", [4, 60, 250])
@pytest.mark.parametrize("lost", [0.0, -1.0, -0.1])
def test_equal_differences_have_no_ends_to_show_and_the_verdict_they_had(num: int, lost: float) -> None:
    before = np.random.default_rng(num).uniform(1, 2, size=num)
    got = paired_difference((before + lost).tolist(), before.tolist(), range(num))
    assert got.interval.has_no_spread and got.interval.ends is None and got.interval.low is not None
    assert got.verdict == ("lower" if lost and num >= 50 else "inconclusive")


def test_ends_are_shown_where_something_differs_and_not_of_a_single_cluster() -> None:
    got = mean_interval([0.0, 0.0, 1.0], range(3))
    assert not got.has_no_spread and got.ends == (got.low, got.high)
    alone = mean_interval([0.0, 1.0], [0, 0])
    assert not alone.has_no_spread and alone.ends is None
    assert proportion_interval(4, 4).ends is not None  # exact: four of four is not certainty
