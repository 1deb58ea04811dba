"""Needles lie at the 40 official depths; a task with one visits each depth once in 40 items."""

from __future__ import annotations

import random

import numpy as np

_NUM_DEPTHS = 40


def official_depths() -> list[int]:
    """40 depths from 0 to 100 percent of the haystack, ascending."""
    return [int(depth) for depth in np.linspace(0, 100, num=_NUM_DEPTHS).round()]


def depth_of_item(seed: int, index: int) -> int:
    """Depth of item `index`, percent: each run of 40 items visits every depth once, in an order the seed shuffles."""
    depths = official_depths()
    block, place = divmod(index, _NUM_DEPTHS)
    random.Random(f"depths/{seed}/{block}").shuffle(depths)
    return depths[place]
