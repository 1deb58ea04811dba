"""Numbers that the server should show and does not yet, turned into batches.

Pure. A run's numbers are sent where they differ from what the server holds, at a step never used before. A batch that was
not confirmed is the next one again, point for point, and MLflow stores equal points once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jobs.tracking.metrics import MetricPoint, Readings

MAX_POINTS_PER_BATCH = 1000
"""MLflow refuses more."""

PARENT = ""
"""The sweep's own run; its children go by their variants' labels."""

_SAME = 1e-12  # the order of a sum may change its last bits


class PointBatch(NamedTuple):
    """One call: points and tags of one run, and the last step its numbers have used after it (None: as before)."""

    run: str
    points: tuple[MetricPoint, ...]
    last_step: int | None
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class RunState:
    """What a run holds on the server: the latest value of each key, and the last step of its numbers (-1: none)."""

    values: dict[str, float] = field(default_factory=dict)
    last_step: int = -1


class Backlog:
    """What is still to be sent: the newest numbers of each run, and batches already made. Not thread-safe."""

    def __init__(self, known: Mapping[str, RunState]) -> None:
        self._known = {run: RunState(dict(state.values), state.last_step) for run, state in known.items()}
        self._wanted: dict[str, Readings] = {}
        self._batches: deque[PointBatch] = deque()

    def want(self, run: str, readings: Readings) -> None:
        """The run should show these numbers, in place of older ones that have not begun to be sent."""
        self._wanted[run] = readings

    def want_trace(self, run: str, points: Sequence[MetricPoint]) -> None:
        """The run should chart these points of one key, at most a batch."""
        if not points:
            return
        assert len(points) <= MAX_POINTS_PER_BATCH
        values = self._state(run).values
        last, key, number = points[-1].value, points[0].key, 1
        # A chart that ends in another value is of a row since replaced. MLflow takes no points back, so the new trace
        # gets a key with a number.
        while key in values and not _is_same(values[key], last):
            number += 1
            key = f"{points[0].key}/{number}"
        if key not in values:
            # Noted at once, not when it is confirmed, or the same trace would be queued twice while a server is away.
            values[key] = last
            renamed = tuple(point._replace(key=key) for point in points)
            self._batches.append(PointBatch(run, renamed, None))

    def want_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """The run should carry these tags, at most a batch."""
        self._batches.append(PointBatch(run, (), None, tuple(tags.items())))

    def next_batch(self) -> PointBatch | None:
        """What to send now; the same again until `confirm`. None: the server shows all that is wanted."""
        while not self._batches and self._wanted:
            run = next(iter(self._wanted))
            self._batches.extend(self._batches_of(run, self._wanted.pop(run)))
        return self._batches[0] if self._batches else None

    def confirm(self) -> None:
        """Note that the batch of `next_batch` has arrived."""
        batch = self._batches.popleft()
        state = self._state(batch.run)
        if batch.last_step is not None:
            state.last_step = batch.last_step
        state.values.update({point.key: point.value for point in batch.points})

    def _batches_of(self, run: str, readings: Readings) -> list[PointBatch]:
        state = self._state(run)
        changed = [
            (key, value)
            for key, value in sorted(readings.values.items())
            if key not in state.values or not _is_same(state.values[key], value)
        ]
        # Of a key MLflow shows the point of the highest step and, at one step and time, the largest value: at a step used
        # before, a number that fell would not be seen.
        step = max(readings.num_rows, state.last_step + 1)
        points = [MetricPoint(key, value, readings.time_ms, step) for key, value in changed]
        starts = range(0, len(points), MAX_POINTS_PER_BATCH)
        return [PointBatch(run, tuple(points[at : at + MAX_POINTS_PER_BATCH]), step) for at in starts]

    def _state(self, run: str) -> RunState:
        return self._known.setdefault(run, RunState())


def _is_same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SAME, abs_tol=_SAME)
