"""A straight axis, and round numbers on it."""

from __future__ import annotations

import math
from typing import NamedTuple

_STEPS = (1, 2, 2.5, 5, 10)
_BINARY_UNIT = 1024


class Axis(NamedTuple):
    """From values to places on the page; `start` is where `low` lies and `end` where `high` does."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The place of a value, which may lie outside."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def at_edge(self, value: float) -> float:
        """The place of a value, or the edge that it lies beyond."""
        return self.at(min(max(value, self.low), self.high))

    def holds(self, value: float) -> bool:
        """Whether the value lies on the axis."""
        return self.low <= value <= self.high


class Tick(NamedTuple):
    """A round value with just the digits that tell it from its neighbours."""

    value: float
    text: str


def nice_ticks(low: float, high: float, most: int = 6, *, binary: bool = False) -> list[Tick]:
    """About `most` round values at most, from `low` to `high`, which is larger; binary: in the largest unit of bytes."""
    unit = 1.0
    while binary and high / unit >= _BINARY_UNIT:
        unit *= _BINARY_UNIT
    raw = (high - low) / unit / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(it * power for it in _STEPS if it * power >= raw * (1 - 1e-9))
    digits = next(it for it in range(20) if abs(round(step, it) - step) < step * 1e-6)
    first, last = math.ceil(low / unit / step - 1e-9), math.floor(high / unit / step + 1e-9)
    return [Tick(index * step * unit, f"{index * step:.{digits}f}") for index in range(first, last + 1)]
