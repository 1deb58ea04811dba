"""The scheduler's vocabulary: what happened to actors and units, and what is to be done about it.

All values are frozen and say nothing about how an actor is run, so any executor, or a test, can use them. `now_s` is in
seconds of one monotonic clock, the driver's.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.execution.scheduling.failure import ErrorKind


@dataclass(frozen=True, slots=True)
class ActorPlaced:
    """The actor's process runs on some machine; its model is not loaded yet."""

    actor_id: int
    now_s: float


@dataclass(frozen=True, slots=True)
class ActorReady:
    """The actor's model is loaded; it can take a unit."""

    actor_id: int
    now_s: float


@dataclass(frozen=True, slots=True)
class ActorDied:
    """The actor is gone, or counts as gone; its unit is lost unless the actor still reports it."""

    actor_id: int
    kind: ErrorKind
    now_s: float


@dataclass(frozen=True, slots=True)
class UnitFinished:
    """The actor returned the unit's rows and is free for the unit queued there, or for any.

    `is_whole`: the rows are all that the unit owes; False after an attempt without users' policies.
    """

    actor_id: int
    unit_id: str
    now_s: float
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class UnitFailed:
    """The unit brought no rows; the actor is alive and free for the unit queued there, or for any."""

    actor_id: int
    unit_id: str
    kind: ErrorKind
    now_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: without it, nobody would notice a timeout while no actor reports."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The user wants to stop: hand out nothing more, keep accepting what is finished."""

    now_s: float


Event = ActorPlaced | ActorReady | ActorDied | UnitFinished | UnitFailed | Tick | Interrupted


@dataclass(frozen=True, slots=True)
class StartActor:
    """Start a new actor under this id and load its model."""

    actor_id: int


@dataclass(frozen=True, slots=True)
class StopActor:
    """Kill an actor that was never placed (`NO_RESOURCES`) or reports no more (`STUCK`); `unit_id`: what it worked on."""

    actor_id: int
    kind: ErrorKind
    unit_id: str | None = None


@dataclass(frozen=True, slots=True)
class Assign:
    """Give the unit to the actor; `attempt` counts from 1.

    `without_user_policies`: this is the last attempt, and each one before may have killed its actor.
    """

    actor_id: int
    unit_id: str
    attempt: int
    without_user_policies: bool = False


@dataclass(frozen=True, slots=True)
class Queue:
    """Give the unit to a busy actor, which begins it after the one it works on; otherwise as `Assign`."""

    actor_id: int
    unit_id: str
    without_user_policies: bool = False


@dataclass(frozen=True, slots=True)
class Begin:
    """For the log alone: the actor has gone on to the unit queued there; `attempt` counts from 1."""

    actor_id: int
    unit_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class AcceptUnit:
    """Keep the rows of the `UnitFinished` just handed in: the unit has ended."""

    unit_id: str


@dataclass(frozen=True, slots=True)
class DropResult:
    """Throw away the rows of the `UnitFinished` just handed in: the unit had ended before."""

    unit_id: str


@dataclass(frozen=True, slots=True)
class FailUnit:
    """Write failed rows for the unit: it has ended. `preemptions` of its attempts were cut short by the machine's end."""

    unit_id: str
    kind: ErrorKind
    attempts: int
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Abort:
    """End the whole run with an error of this kind."""

    kind: ErrorKind


@dataclass(frozen=True, slots=True)
class Done:
    """Every unit has ended. Comes once, last."""


Decision = StartActor | StopActor | Assign | Queue | Begin | AcceptUnit | DropResult | FailUnit | Abort | Done
