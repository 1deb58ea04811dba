"""p-values agree with scipy and with every sign tried, and depend neither on the order of items nor on who is a."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from evaluators.statistics.intervals import StatisticsError
from evaluators.statistics.paired_tests import (
    NUM_SIGN_FLIPS,
    holm,
    mcnemar_p_value,
    paired_test,
    sign_flip_p_value,
)


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def every_sign_p(sums: list[float]) -> float:
    """The sign-flip test by its definition."""
    totals = [
        abs(sum(sign * value for sign, value in zip(signs, sums, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(sums))
    ]
    return float(np.mean([total >= abs(sum(sums)) - 1e-12 for total in totals]))


@pytest.mark.parametrize(("num_higher", "num_lower"), [(0, 0), (1, 0), (0, 6), (3, 9), (40, 60)])
def test_mcnemar_is_a_fair_coin_on_the_pairs_that_differ(num_higher: int, num_lower: int) -> None:
    num = num_higher + num_lower
    tail = stats.binom.cdf(min(num_higher, num_lower), num, 0.5)
    assert mcnemar_p_value(num_higher, num_lower) == pytest.approx(min(1.0, 2 * tail))


def test_six_flips_one_way_are_the_fewest_that_can_be_significant() -> None:
    assert mcnemar_p_value(0, 5) > 0.05 > mcnemar_p_value(0, 6)


def test_binary_single_items_get_mcnemar_and_clusters_do_not(rng: np.random.Generator) -> None:
    a, b = (rng.integers(0, 2, size=40).astype(float) for _ in range(2))
    single = paired_test(a.tolist(), b.tolist(), range(40))
    expected = mcnemar_p_value(int((a > b).sum()), int((a < b).sum()))
    assert (single.method, single.p_value) == ("mcnemar_exact", expected)
    assert paired_test(a.tolist(), b.tolist(), [i // 2 for i in range(40)]).method == "cluster_sign_flip"
    assert paired_test((a / 2).tolist(), b.tolist(), range(40)).method == "cluster_sign_flip"


def test_few_clusters_try_every_sign(rng: np.random.Generator) -> None:
    for num in (1, 2, 7, 13):
        sums = rng.normal(loc=0.5, size=num)
        assert sign_flip_p_value(sums) == every_sign_p(sums.tolist())


def test_totals_that_differ_by_rounding_alone_are_ties(rng: np.random.Generator) -> None:
    assert sign_flip_p_value(np.array([0.1, 0.2, -0.3])) == 1.0  # their sum is not quite 0
    for _ in range(20):
        sums = rng.integers(-5, 6, size=10)
        assert sign_flip_p_value(sums * 0.1) == every_sign_p(sums.tolist())


def test_clusters_without_a_difference_say_nothing(rng: np.random.Generator) -> None:
    sums = rng.normal(size=9)
    assert sign_flip_p_value(np.concatenate([sums, np.zeros(90)])) == sign_flip_p_value(sums)
    assert sign_flip_p_value(np.zeros(60)) == 1.0


def test_many_clusters_agree_with_scipys_permutation_test(rng: np.random.Generator) -> None:
    sums = rng.normal(loc=0.15, size=80)
    expected = stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=19_999, rng=rng
    ).pvalue
    error = np.sqrt(expected * (1 - expected) * (1 / NUM_SIGN_FLIPS + 1 / 19_999))
    assert sign_flip_p_value(sums) == pytest.approx(expected, abs=6 * error + 2e-4)


@pytest.mark.parametrize("num", [14, 15, 40, 321])
def test_the_draws_are_scipys_own_with_the_same_seed(rng: np.random.Generator, num: int) -> None:
    """Numbers that were published with scipy's test stay what they are."""
    shares = rng.normal(loc=0.1, size=num)
    shares = np.sort(shares * np.sign(shares.sum()) / np.abs(shares).sum())
    expected = stats.permutation_test(
        (shares,),
        lambda values, axis: np.abs(values.sum(axis=axis)).round(12),
        permutation_type="samples",
        alternative="greater",
        n_resamples=NUM_SIGN_FLIPS,
        vectorized=True,
        rng=np.random.default_rng(20_241),
    ).pvalue
    assert sign_flip_p_value(shares) == pytest.approx(expected, abs=2e-4)


def test_unit_differences_flip_like_mcnemar(rng: np.random.Generator) -> None:
    """McNemar is the sign-flip test of differences of one item, so both must say the same."""
    sums = rng.choice([-1.0, 0.0, 1.0], size=100, p=[0.1, 0.7, 0.2])
    expected = mcnemar_p_value(int((sums > 0).sum()), int((sums < 0).sum()))
    assert sign_flip_p_value(sums) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("num", [9, 30])
def test_neither_order_nor_sides_change_p(rng: np.random.Generator, num: int) -> None:
    a, b, order = rng.random(num), rng.random(num), rng.permutation(num)
    clusters = rng.integers(0, num // 2, size=num)
    p = paired_test(a.tolist(), b.tolist(), clusters.tolist()).p_value
    shuffled = paired_test(a[order].tolist(), b[order].tolist(), clusters[order].tolist()).p_value
    assert shuffled == pytest.approx(p)
    assert paired_test(b.tolist(), a.tolist(), clusters.tolist()).p_value == pytest.approx(p)
    assert paired_test((7 * a).tolist(), (7 * b).tolist(), clusters.tolist()).p_value == pytest.approx(p)


def test_repeating_a_context_makes_nothing_more_certain(rng: np.random.Generator) -> None:
    a, b = rng.random(20), rng.random(20)
    once = paired_test(a.tolist(), b.tolist(), range(20))
    often = paired_test(np.tile(a, 5).tolist(), np.tile(b, 5).tolist(), list(range(20)) * 5)
    assert often.p_value == pytest.approx(once.p_value)


def test_holm_by_hand() -> None:
    got = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert list(got) == ["a", "b", "c", "d"]
    adjusted = {name: it.adjusted_p for name, it in got.items()}
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert [name for name, it in got.items() if it.is_significant] == ["a", "d"]


def test_holm_decides_as_the_step_down_procedure(rng: np.random.Generator) -> None:
    p_values = dict(enumerate((rng.random(30) ** 4).tolist()))
    rejected = set()
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        if p_values[name] * (len(p_values) - rank) >= 0.05:
            break
        rejected.add(name)
    got = holm(p_values)
    assert {name for name, it in got.items() if it.is_significant} == rejected
    renamed = holm({f"x{name}": p_values[name] for name in reversed(p_values)})
    assert all(renamed[f"x{name}"] == it for name, it in got.items())


def test_holm_over_one_or_none_changes_nothing() -> None:
    assert holm({}) == {}
    assert holm({"only": 0.04})["only"].adjusted_p == 0.04


def test_what_is_no_probability_or_no_pair_is_refused() -> None:
    with pytest.raises(StatisticsError, match=r"p = 1.5 of 'x'"):
        holm({"x": 1.5})
    with pytest.raises(StatisticsError, match="2 values cannot be paired with 1"):
        paired_test([1.0, 2.0], [1.0], ["a", "b"])
    with pytest.raises(StatisticsError, match="nothing to aggregate"):
        paired_test([], [], [])
