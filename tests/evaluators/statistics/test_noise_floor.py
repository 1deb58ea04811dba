"""The A/A floor is as far as two decodings of one cache can be apart, and nothing inside it counts."""

from __future__ import annotations

import numpy as np
import pytest

from evaluators.statistics.intervals import paired_difference
from evaluators.statistics.noise_floor import noise_floor


def test_floor_is_the_far_end_of_the_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    again, full = rng.normal(size=30), rng.normal(loc=0.3, size=30)
    floor = noise_floor(again.tolist(), full.tolist(), range(30))
    interval = paired_difference(again.tolist(), full.tolist(), range(30)).interval
    assert interval.low is not None and interval.high is not None
    assert floor.size == max(abs(interval.low), abs(interval.high))
    assert floor.covers(floor.size) and floor.covers(-floor.size) and not floor.covers(1.01 * floor.size)
    other_way = noise_floor(full.tolist(), again.tolist(), range(30))
    assert other_way.size == pytest.approx(floor.size)


def test_flips_are_counted_either_way() -> None:
    assert noise_floor([1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], range(4)).flip_ratio == 0.5


def test_equal_decodings_cover_nothing_not_even_zero() -> None:
    floor = noise_floor([0.3] * 20, [0.3] * 20, range(20))
    assert (floor.size, floor.flip_ratio) == (0.0, 0.0)
    assert not floor.covers(0.0)
