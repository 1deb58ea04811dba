"""Exact tests of a share: against sums of binomial terms, at the numbers that are known, and over a sequence."""

import math
import random
from fractions import Fraction

import pytest

from evaluators.statistics.fixed_sequence import most_bad, needed_contexts, num_shown, share_p_value
from evaluators.statistics.intervals import StatisticsError


def slow_p_value(num_bad: int, num_contexts: int, share: Fraction) -> Fraction:
    """The binomial tail, term by term and without rounding."""
    return sum(
        (
            math.comb(num_contexts, k) * share**k * (1 - share) ** (num_contexts - k)
            for k in range(num_bad + 1)
        ),
        Fraction(0),
    )


def test_the_p_value_is_the_binomial_tail(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        number = rng.randrange(1, 150)
        bad, share = rng.randrange(number + 1), Fraction(rng.randrange(1, 100), 100)
        assert share_p_value(bad, number, float(share)) == pytest.approx(
            float(slow_p_value(bad, number, share)), rel=1e-9, abs=1e-300
        )


@pytest.mark.parametrize(
    ("share", "error", "number"), [(0.05, 0.05, 59), (0.1, 0.05, 29), (0.05, 0.0025, 117), (0.5, 0.25, 2)]
)
def test_fewer_contexts_than_needed_certify_nothing(share: float, error: float, number: int) -> None:
    """With a share of 0.5 an error of 0.25 is met exactly, where logarithms may round either way."""
    assert needed_contexts(share, error) == number
    assert most_bad(number, share, error) == 0 and most_bad(number - 1, share, error) is None


@pytest.mark.parametrize(
    ("number", "bad"), [(0, None), (58, None), (59, 0), (100, 1), (200, 4), (400, 12), (600, 20), (1200, 47)]
)
def test_known_numbers_that_may_be_lost_at_5_per_cent(number: int, bad: int | None) -> None:
    assert most_bad(number, 0.05, 0.05) == bad


def test_the_most_that_may_be_lost_is_the_last_below_the_error(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(30):
        number, share, error = rng.randrange(1, 400), rng.uniform(0.01, 0.6), rng.uniform(0.001, 0.5)
        shown = [k for k in range(number + 1) if share_p_value(k, number, share) <= error]
        assert most_bad(number, share, error) == (shown[-1] if shown else None)
        assert bool(shown) == (number >= needed_contexts(share, error))


def test_the_first_failure_ends_a_sequence() -> None:
    assert num_shown([0.01, 0.05, 0.2, 0.0], 0.05) == 2
    assert num_shown([math.nan, 0.0], 0.05) == 0 and num_shown([], 0.05) == 0 and num_shown([0.0], 0.05) == 1


@pytest.mark.parametrize("bad", [(-1, 2, 0.1), (3, 2, 0.1), (0, 0, 0.1), (0, 2, 0.0), (0, 2, math.nan)])
def test_what_is_no_share_is_refused(bad: tuple[int, int, float]) -> None:
    with pytest.raises(StatisticsError):
        share_p_value(*bad)
