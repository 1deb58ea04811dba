"""Ticks are round, inside, and told with the digits that tell them apart."""

import itertools
import math
import random

import pytest

from jobs.reporting.figures.axis import Axis, nice_ticks


def test_ticks_are_few_round_and_inside(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        low = rng.choice([0.0, rng.uniform(-5, 50)])
        high = low + 10 ** rng.uniform(-4, 12)
        most = rng.choice([3, 6])
        ticks = nice_ticks(low, high, most)
        assert 1 <= len(ticks) <= most + 1
        slack = (high - low) * 1e-6
        assert all(low - slack <= it.value <= high + slack for it in ticks)
        assert all(math.isclose(float(it.text), it.value, abs_tol=slack) for it in ticks)
        assert len({it.text for it in ticks}) == len(ticks)
        steps = {round((b.value - a.value) / (high - low), 6) for a, b in itertools.pairwise(ticks)}
        assert len(steps) <= 1


def test_bytes_are_round_in_their_own_unit() -> None:
    assert [it.value / 2**20 for it in nice_ticks(0, 4.2 * 2**20, binary=True)] == [0, 1, 2, 3, 4]
    assert [it.value for it in nice_ticks(0, 1000, binary=True)] == [0, 200, 400, 600, 800, 1000]


def test_places_run_from_start_to_end_and_stop_at_the_edges() -> None:
    axis = Axis(1.0, 3.0, 100, 20)
    assert axis.at(1.0) == 100 and axis.at(2.0) == 60 and axis.at(5.0) == pytest.approx(-60)
    assert axis.at_edge(5.0) == 20 and axis.at_edge(-9.0) == 100
    assert axis.holds(3.0) and not axis.holds(3.01)
