"""What a sweep tells a tracker and when; of a tracker's calls only `start` may raise.

Nothing here knows MLflow; `jobs/tracking/mlflow_tracker.py` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from jobs.console.addresses import without_passwords
from jobs.results.schema import Row
from jobs.tracking.metrics import MetricPoint, Ranking, Readings

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
RUN_ID, EXPERIMENT_ID, VIEW = "{run_id}", "{experiment_id}", "{view}"
"""Stand in a description for the ids of the sweep's own run, of its experiment, and of the ranked list of its variants."""


WORKSPACE = "workflowType=machine_learning"
"""In an address of MLflow's page: that of runs with metrics, not of applications that call models."""


class TrackingError(ValueError):
    """The tracking server or database cannot be used; raised before any work is done. Its message has no passwords."""

    def __init__(self, message: str) -> None:
        # Much of it is what MLflow and its libraries say, who spell addresses out.
        super().__init__(without_passwords(message))


@dataclass(frozen=True, slots=True)
class TrackedVariant:
    """What a variant's run says of it from the start."""

    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrackedSweep:
    """What the tracker is told at the start.

    `sweep_id` (letters, digits, `.`, `_`, `-`) names the sweep: starting it again continues its runs. `params` are the
    flattened settings, `tags` belong to the sweep's own run, and `variants` are by label. `experiment_id` stands for an
    experiment that is there; without one, that called `experiment` is found or made.

    Raises:
        ValueError: another character in `sweep_id`.
    """

    sweep_id: str
    name: str
    experiment: str
    variants: Mapping[str, TrackedVariant]
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    started_at_ms: int | None = None
    experiment_id: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.sweep_id):
            raise ValueError(f"sweep_id {self.sweep_id!r} must be letters, digits, `.`, `_` and `-`")


@dataclass(frozen=True, slots=True)
class TrackedDataset:
    """The items of a task. `digest` differs where any item, context or answer does; `source` is JSON."""

    name: str
    digest: str
    source_type: str
    source: str
    num_items: int
    num_contexts: int


@dataclass(frozen=True, slots=True)
class VariantReport:
    """The final numbers of a variant, a trace of each task, and the same in words (markdown).

    `name` is what tables call it, which may tell what it kept; "" where they have not named it. `tags` are those of its run
    that only finished rows tell.
    """

    readings: Readings
    traces: Sequence[Sequence[MetricPoint]] = ()
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What the tracker is told at the end: how it ended, the answer in markdown, the final numbers, and files.

    `columns` are the numbers by which the variants are listed, and `ranking` says in which order. `datasets` are what all
    runs read, empty while items are missing. `folder` holds the files that go with the sweep's own run, None where there are
    none; those named in `tables` are shown as tables. `is_hurried`: its user waits for the prompt, and the next run can
    deliver the rest. `tags` are those of all runs that only finished rows tell, `own_tags` of the sweep's own.
    """

    status: RunStatus
    description: str
    readings: Readings
    variants: Mapping[str, VariantReport] = field(default_factory=dict)
    columns: Sequence[str] = ()
    ranking: Ranking | None = None
    datasets: Sequence[TrackedDataset] = ()
    tables: Sequence[str] = ()
    folder: Path | None = None
    is_hurried: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    own_tags: Mapping[str, str] = field(default_factory=dict)


class Tracker(Protocol):
    """Mirrors a sweep somewhere. One writer: all calls come from the driver's thread."""

    def start(self, sweep: TrackedSweep) -> None:
        """Open the sweep's runs. Raises TrackingError, with the remedy, when that is impossible."""
        ...

    def record_rows(self, rows: Sequence[Row]) -> None:
        """Take rows in, to be shown when the server can. Never raises, never waits; rows may come again."""
        ...

    def record_links(self, links: Mapping[str, str]) -> None:
        """Take in tags of the sweep's own run that say where it runs. Never raises, never waits."""
        ...

    def finish(self, report: SweepReport) -> bool:
        """Send what is left and close the runs. Never raises; returns whether everything was delivered."""
        ...

    @property
    def how_to_open(self) -> str:
        """A line for the user: where to look at the runs. A command has a second line: the address to open then."""
        ...


class NullTracker:
    """`tracking: off`: keeps nothing."""

    def start(self, sweep: TrackedSweep) -> None:
        """Do nothing."""

    def record_rows(self, rows: Sequence[Row]) -> None:
        """Do nothing."""

    def record_links(self, links: Mapping[str, str]) -> None:
        """Do nothing."""

    def finish(self, report: SweepReport) -> bool:
        """Do nothing; nothing is undelivered."""
        return True

    @property
    def how_to_open(self) -> str:
        """Why there is nothing to open."""
        return "tracking is off"
