"""The progress of a sweep for people: one line on a terminal, a line now and then in a log. Decides nothing.

Time left is what the finished cost took, scaled to the cost that remains; loading the model does not count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jobs.console.printing import text_console
from jobs.execution.run_events import (
    ActorLoaded,
    ActorLost,
    ActorStarting,
    Advice,
    ClusterJoined,
    RunEvent,
    UnitEnded,
    UnitStarted,
)
from jobs.planning.work import WorkUnit

_S_PER_MIN = 60
_LEAST_UNITS = 2  # before a pace is told
_LOG_INTERVAL_S = 10.0  # a line per unit would fill the log of a long sweep


def seconds_left(done_cost: float, total_cost: float, elapsed_s: float) -> float | None:
    """Time that the remaining cost takes at the pace so far; None before anything is done."""
    if done_cost <= 0:
        return None
    return elapsed_s * max(0.0, total_cost - done_cost) / done_cost


def format_left(left_s: float | None) -> str:
    """The time left in words; to the second below a minute, then to the minute."""
    if left_s is None:
        return "time left not known yet"
    if left_s < _S_PER_MIN:
        return f"about {left_s:.0f} s left"
    return f"about {left_s / _S_PER_MIN:.0f} min left"


class ProgressView:
    """A context manager whose `on_event` shows units done, rows ok and failed, and the time left."""

    def __init__(self, units: Sequence[WorkUnit], console: Console | None = None) -> None:
        self._console = console or text_console(stderr=True)
        self._num_units = len(units)
        self._total_cost = sum(unit.cost_tokens for unit in units)
        self._num_done = self._num_rows = self._num_failed_rows = 0
        self._done_cost = 0.0
        self._ready_at_s: float | None = None
        self._logged_at_s = 0.0
        self._bar = Progress(
            TextColumn("units {task.completed:.0f}/{task.total:.0f}", markup=False),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=self._num_units)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_event(self, event: RunEvent) -> None:
        """Show the event. Fits the executors' `on_event`."""
        match event:
            case Advice(text=text):
                self._console.print(f"warning: {text}", style="yellow", soft_wrap=True)
            case ActorStarting(actor=actor):
                self._say(f"{actor}: loading the model …", is_news=True)
            case ActorLoaded(actor=actor):
                # From the first actor that is ready; those that load later would only lengthen the time.
                self._ready_at_s = self._ready_at_s or time.monotonic()
                self._say(f"{actor}: ready", is_news=True)
            case ActorLost(actor=actor, kind=kind):
                self._say(f"{actor}: lost ({kind.value})", is_news=True)
            case UnitStarted() | ClusterJoined():
                pass
            case UnitEnded():
                self._count(event)
                self._say(self._summary(), is_news=self._num_done == self._num_units)

    def _count(self, event: UnitEnded) -> None:
        self._num_done += 1
        self._done_cost += event.cost_tokens
        self._num_rows += event.num_rows
        self._num_failed_rows += event.num_failed_rows
        self._bar.update(self._task, completed=self._num_done)

    def _summary(self) -> str:
        elapsed_s = time.monotonic() - (self._ready_at_s or time.monotonic())
        num_ok = self._num_rows - self._num_failed_rows
        # The first unit comes with what is done once: kernels compiled, files read.
        is_known = self._num_done >= min(_LEAST_UNITS, self._num_units)
        left = format_left(seconds_left(self._done_cost, self._total_cost, elapsed_s) if is_known else None)
        return f"{num_ok} rows ok, {self._num_failed_rows} failed, {left}"

    def _say(self, text: str, *, is_news: bool) -> None:
        self._bar.update(self._task, description=text)
        now_s = time.monotonic()
        # Without a terminal the bar prints nothing.
        if self._bar.disable and (is_news or now_s - self._logged_at_s >= _LOG_INTERVAL_S):
            self._logged_at_s = now_s
            self._console.print(f"units {self._num_done}/{self._num_units}: {text}")
