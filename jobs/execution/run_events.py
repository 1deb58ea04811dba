"""What a running sweep reports to its progress view and log; every unit that ends is reported exactly once.

The same events come from every executor, in the order in which things happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.execution.scheduling.failure import ErrorKind
from jobs.planning.work import WorkUnit
from jobs.results.schema import FAILED, Row


@dataclass(frozen=True, slots=True)
class Advice:
    """Something the user should know; the run goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class ClusterJoined:
    """A cluster that outlives the run has taken it in as the job `job_id`; `dashboard` is an address, or None."""

    job_id: str
    dashboard: str | None


@dataclass(frozen=True, slots=True)
class ActorStarting:
    """An actor is being started; loading its model can take minutes."""

    actor: str


@dataclass(frozen=True, slots=True)
class ActorLoaded:
    """The actor's model is loaded."""

    actor: str


@dataclass(frozen=True, slots=True)
class ActorLost:
    """The actor is gone; its unit is tried again or becomes failed rows, and the unit queued behind that waits again."""

    actor: str
    kind: ErrorKind


@dataclass(frozen=True, slots=True)
class UnitStarted:
    """An actor has begun the unit; `attempt` counts from 1. Left out where the end is known before the beginning."""

    actor: str
    unit_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class UnitEnded:
    """The unit's rows are handed over; `num_rows` counts all of them, the failed ones too."""

    unit_id: str
    cost_tokens: float
    num_rows: int
    num_failed_rows: int

    @classmethod
    def of(cls, unit: WorkUnit, rows: Sequence[Row]) -> UnitEnded:
        """Count the rows of a unit."""
        num_failed = sum(row["status"] == FAILED for row in rows)
        return cls(unit.unit_id, unit.cost_tokens, len(rows), num_failed)


RunEvent = Advice | ClusterJoined | ActorStarting | ActorLoaded | ActorLost | UnitStarted | UnitEnded
OnEvent = Callable[[RunEvent], None]
OnRows = Callable[[WorkUnit, list[Row]], None]
"""Takes over a unit's rows; called once per unit, from the driver's thread. What it raises ends the run."""
