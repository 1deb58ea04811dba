"""What a sweep tells whoever mirrors it, and the promise it gets: only `start` can fail.

Nothing here knows MLflow; `jobs/tracking.py` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Row = Mapping[str, Any]
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class TrackingError(ValueError):
    """The tracking server or database cannot be used; raised before any work is done."""


@dataclass(frozen=True, slots=True)
class TrackedSweep:
    """What the tracker is told at the start.

    `sweep_id` (letters, digits, `.`, `_`, `-`) names the sweep: starting it again continues its runs.
    `item_steps` maps every item id of the plan to its place. `params` are the flattened settings.

    Raises:
        ValueError: another character in `sweep_id`.
    """

    sweep_id: str
    name: str
    experiment: str
    item_steps: Mapping[str, int]
    params: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.sweep_id):
            raise ValueError(f"sweep_id {self.sweep_id!r} must be letters, digits, `.`, `_` and `-`")


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """What the tracker is told at the end: how it ended, the table as markdown, and the final numbers.

    `counts` belong to the sweep (`rows_ok` …), `aggregates` to its variants (label → metric → value).
    """

    status: RunStatus
    table_markdown: str
    counts: Mapping[str, float] = field(default_factory=dict)
    aggregates: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


class Tracker(Protocol):
    """Mirrors a sweep somewhere. One writer: all calls come from the driver's thread."""

    def start(self, sweep: TrackedSweep) -> bool:
        """Open the sweep's run; whether it is new. Raises TrackingError, with the remedy, when that is impossible."""
        ...

    def record_rows(self, rows: Sequence[Row]) -> None:
        """Send rows. Never raises; safe with no rows and with rows sent before."""
        ...

    def finish(self, summary: SweepSummary) -> bool:
        """Send what is left and close the runs. Never raises; returns whether everything was delivered."""
        ...

    @property
    def how_to_open(self) -> str:
        """One line for the user: where to look at the runs."""
        ...


class NullTracker:
    """`tracking: off`: keeps nothing."""

    def start(self, sweep: TrackedSweep) -> bool:
        """Do nothing; nothing is new."""
        return False

    def record_rows(self, rows: Sequence[Row]) -> None:
        """Do nothing."""

    def finish(self, summary: SweepSummary) -> bool:
        """Do nothing; nothing is undelivered."""
        return True

    @property
    def how_to_open(self) -> str:
        """Why there is nothing to open."""
        return "tracking is off"
