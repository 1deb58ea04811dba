"""The state of every unit and actor, and what must hold between the two: each names the other or neither does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from jobs.execution.scheduling.failure import ErrorKind


class SchedulerError(RuntimeError):
    """The scheduler's books contradict themselves: a bug of ours."""


class UnitState(StrEnum):
    """A queued unit has been given to an actor that still works on another one."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


class ActorState(StrEnum):
    """STARTING: not placed on a machine yet; LOADING: the model. A dead actor never comes back under its id."""

    STARTING = "starting"
    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    DEAD = "dead"


@dataclass(slots=True)
class Unit:
    """A unit of the plan and how far it is; `attempts` counts how often an actor has begun it.

    `preemptions` of the attempts ended because the machine was taken away: they have a budget of their own.
    """

    unit_id: str
    rank: int  # 0 is the costliest
    state: UnitState = UnitState.WAITING
    attempts: int = 0
    preemptions: int = 0
    actor_id: int | None = None  # while running or queued; an actor presumed dead may run it as well
    lost_at: list[int] = field(default_factory=list)  # the place of each actor that it may have killed

    @property
    def own_attempts(self) -> int:
        """Attempts that were not cut short by a preemption."""
        return self.attempts - self.preemptions

    def count_loss(self, kind: ErrorKind) -> int:
        """Enter that the latest attempt brought no rows; returns its number in the budget that the kind counts in."""
        self.preemptions += kind is ErrorKind.PREEMPTED
        return self.preemptions if kind is ErrorKind.PREEMPTED else self.own_attempts


@dataclass(slots=True)
class Actor:
    """An actor, the units it holds, and how fast it has been: finished units of `done_cost` in `done_s` seconds.

    `since_s`: when it was started, placed, or began its unit, whichever came last.
    """

    actor_id: int
    place: int
    since_s: float
    state: ActorState = ActorState.STARTING
    unit_id: str | None = None
    next_id: str | None = None  # queued there while `unit_id` runs
    num_answered: int = 0
    done_cost: float = 0.0
    done_s: float = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether it can take units, now or after the one it works on."""
        return self.state in (ActorState.IDLE, ActorState.BUSY)

    @property
    def pace(self) -> float | None:
        """Cost per second so far; None before it has finished anything."""
        # Two answers seen at once carry the same time, so that no seconds lie between them.
        return self.done_cost / self.done_s if self.done_cost > 0 and self.done_s > 0 else None


def check_books(units: Mapping[str, Unit], actors: Mapping[int, Actor]) -> None:
    """Raise `SchedulerError` where a unit and an actor disagree on who holds what, or two actors share a place."""
    for unit in units.values():
        holder = None if unit.actor_id is None else actors[unit.actor_id]
        if (unit.state in (UnitState.RUNNING, UnitState.QUEUED)) != (holder is not None):
            raise SchedulerError(f"{unit} is held by {holder}")
        if holder is not None:
            held_id = holder.unit_id if unit.state is UnitState.RUNNING else holder.next_id
            if holder.state is not ActorState.BUSY or held_id != unit.unit_id:
                raise SchedulerError(f"{unit} is held by {holder}, which says otherwise")
    # The other way round less is asked: an actor may work in vain on a unit that has ended or that another one holds.
    for actor in actors.values():
        if (actor.state is ActorState.BUSY) != (actor.unit_id is not None):
            raise SchedulerError(f"{actor} is busy without a unit, or has one without being busy")
        if actor.next_id is not None and actor.unit_id is None:
            raise SchedulerError(f"{actor} has a unit queued behind none")
    places = [actor.place for actor in actors.values() if actor.state is not ActorState.DEAD]
    if len(set(places)) < len(places):
        raise SchedulerError(f"two actors share a place: {sorted(places)}")
