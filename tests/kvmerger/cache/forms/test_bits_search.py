"""The table found is the best there is at its bits: beside all tables tried, uniform ones, and other orders of layers."""

from __future__ import annotations

import random

import pytest

from kvmerger.cache.forms.bits_search import PAIRS, Pair, best_pairs
from kvmerger.names import FormError
from tests.slow.forms import best_of_all_tables

MEAN_BITS = (2, 2.5, 3, 3.25, 4, 4.9, 5, 6.7, 8)


def errors_of(seed: int, num_layers: int) -> list[dict[Pair, float]]:
    """Errors without any order among pairs, with layers of very unlike sizes."""
    draw = random.Random(seed)
    return [
        {pair: draw.random() * size for pair in PAIRS}
        for size in (10 ** draw.uniform(-2, 2) for _ in range(num_layers))
    ]


def summed(errors_L: list[dict[Pair, float]], pairs: tuple[Pair, ...]) -> float:
    return sum(errors[pair] for errors, pair in zip(errors_L, pairs, strict=True))


@pytest.mark.parametrize("mean_bits", MEAN_BITS)
def test_no_table_of_so_many_bits_has_less_error(mean_bits: float, seed: int) -> None:
    errors_L = errors_of(seed, 4)
    found = best_pairs(errors_L, mean_bits)
    assert sum(map(sum, found)) <= mean_bits * 2 * 4
    assert summed(errors_L, found) == pytest.approx(best_of_all_tables(errors_L, mean_bits), rel=1e-12)


def test_it_is_no_worse_than_any_uniform_table_of_equal_bits(seed: int) -> None:
    errors_L = errors_of(seed, 40)
    for pair in PAIRS:
        uniform = summed(errors_L, (pair,) * 40)
        assert summed(errors_L, best_pairs(errors_L, sum(pair) / 2)) <= uniform * (1 + 1e-12)


def test_more_bits_are_no_worse_and_layers_in_another_order_get_the_same(seed: int) -> None:
    errors_L = errors_of(seed, 12)
    found = [summed(errors_L, best_pairs(errors_L, bits)) for bits in MEAN_BITS]
    assert found == sorted(found, reverse=True)
    order = list(range(12))
    random.Random(seed + 1).shuffle(order)
    pairs, permuted = best_pairs(errors_L, 3.5), best_pairs([errors_L[index] for index in order], 3.5)
    assert permuted == tuple(pairs[index] for index in order)


def test_of_equal_errors_fewest_bits_win_and_the_least_bits_are_every_layers() -> None:
    assert best_pairs([dict.fromkeys(PAIRS, 1.0)] * 3, 8) == ((2, 2),) * 3
    falling = [{pair: 1 / sum(pair) for pair in PAIRS}] * 3
    assert best_pairs(falling, 2) == ((2, 2),) * 3 and best_pairs(falling, 8) == ((8, 8),) * 3


@pytest.mark.parametrize(("error", "bits"), [(float("nan"), 4), (float("inf"), 4), (-1.0, 4), (1.0, 1.9)])
def test_what_nothing_can_be_found_with_is_refused(error: float, bits: float) -> None:
    with pytest.raises(FormError, match=r"no finite number|give 2 or more"):
        best_pairs([dict.fromkeys(PAIRS, error)], bits)
