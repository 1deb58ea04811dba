"""The places that actors fill one after the other, and when one is left empty because nothing comes of its actors.

Pure. Ray does not say where the next actor will be; where one died and the others live on, it is the same device as a rule.
A death may be the unit's fault or the place's: it counts against the place until the unit has been given up, for which it
takes deaths elsewhere, or has been done in part, without what may have killed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

NEVER_S = float("-inf")


@dataclass(slots=True)
class Berth:
    """One place. `num_barren`: actors in a row that died here before they had finished a unit, as far as none is to blame."""

    num_barren: int = 0
    left_at_s: float = NEVER_S


class Berths:
    """As many as there may be actors at once, counted from 0."""

    def __init__(self, count: int, most_barren: int, pause_s: float) -> None:
        """After ``most_barren`` actors came to nothing in one, it gets another only every ``pause_s``."""
        self._berths = [Berth() for _ in range(count)]
        self._most_barren = most_barren
        self._pause_s = pause_s

    def free(self, taken: Collection[int], now_s: float, *, are_others_ready: bool) -> int | None:
        """Where the next actor should go, the place with the fewest deaths; any is better than none while nobody is ready."""
        free = [
            (berth.num_barren, index)
            for index, berth in enumerate(self._berths)
            if index not in taken and (not are_others_ready or self._is_promising(berth, now_s))
        ]
        return min(free)[1] if free else None

    def is_sound(self, index: int) -> bool:
        """Whether no death counts against it."""
        return self._berths[index].num_barren == 0

    def leave(self, index: int, now_s: float, *, is_barren: bool) -> None:
        """Its actor is gone, `is_barren`: before it had finished a unit."""
        berth = self._berths[index]
        berth.left_at_s = now_s
        berth.num_barren += is_barren

    def bear(self, index: int) -> None:
        """Its actor has finished a unit: the place is sound."""
        self._berths[index].num_barren = 0

    def acquit(self, indices: Iterable[int]) -> None:
        """So many deaths here were a unit's fault."""
        for index in indices:
            self._berths[index].num_barren = max(0, self._berths[index].num_barren - 1)

    def _is_promising(self, berth: Berth, now_s: float) -> bool:
        return berth.num_barren < self._most_barren or now_s - berth.left_at_s >= self._pause_s
