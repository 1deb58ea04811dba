"""Shares in proportion: exact in sum, within bounds, and those of a search by halving."""

from __future__ import annotations

import random

import pytest

from kvmerger.policies.allocation.shares import in_proportion
from tests.slow.sharing.dynamickv import shares


def test_shares_are_those_of_a_search(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(60):
        num_layers, least, most = draw.randint(1, 9), draw.randint(0, 3), draw.randint(8, 40)
        # Zeros, equal ones, and weights of very unlike size.
        weights = [
            draw.choice([0.0, 1.0, draw.random(), 10 ** draw.uniform(-4, 3)]) for _ in range(num_layers)
        ]
        total = draw.randint(num_layers * least, num_layers * most)
        found = in_proportion(weights, total, least, most)
        assert sum(found) == total
        assert all(least <= share <= most for share in found)
        assert found == shares(weights, total, least, most), (weights, total, least, most)


@pytest.mark.parametrize(
    ("weights", "total", "bounds", "expected"),
    [
        ([1, 1, 1], 7, (0, 9), [3, 2, 2]),
        ([0, 0], 5, (1, 9), [3, 2]),
        ([2, 1, 0], 6, (0, 9), [4, 2, 0]),
        ([100, 1, 0], 12, (0, 5), [5, 5, 2]),
        ([1e-9, 1], 4, (2, 9), [2, 2]),
        ([5, 5], 18, (2, 9), [9, 9]),
    ],
)
def test_shares_that_can_be_told_by_hand(
    weights: list[float], total: int, bounds: tuple[int, int], expected: list[int]
) -> None:
    assert in_proportion(weights, total, *bounds) == expected
