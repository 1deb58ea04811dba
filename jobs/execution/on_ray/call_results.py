"""Which scheduler event each result of a Ray call is; exceptions are told apart by type, never by their words."""

from __future__ import annotations

from ray import exceptions as ray_errors

from jobs.execution.on_ray.pool import Call, CallResult
from jobs.execution.scheduling.events import (
    ActorDied,
    ActorPlaced,
    ActorReady,
    Event,
    UnitFailed,
    UnitFinished,
)
from jobs.execution.scheduling.failure import ErrorKind
from jobs.execution.unit_runner import DeviceLostError, OtherModelError

# The first type that fits decides, since some are subclasses of others. OutOfMemoryError is the machine's memory, not a
# GPU's. ActorUnavailableError counts as death: its actor is killed before a retry.
_ERROR_KINDS: tuple[tuple[type[Exception], ErrorKind], ...] = (
    (ray_errors.ActorUnschedulableError, ErrorKind.NO_RESOURCES),
    (ray_errors.NodeDiedError, ErrorKind.NODE_DIED),
    (ray_errors.OutOfMemoryError, ErrorKind.OUT_OF_HOST_MEMORY),
    (ray_errors.RayActorError, ErrorKind.ACTOR_DIED),
    (ray_errors.ActorUnavailableError, ErrorKind.ACTOR_DIED),
    (ray_errors.WorkerCrashedError, ErrorKind.ACTOR_DIED),
    (ray_errors.ObjectLostError, ErrorKind.RESULT_LOST),
    # Ray raises what an actor raised as an instance of both RayTaskError and the type that the actor raised.
    (DeviceLostError, ErrorKind.DEVICE_LOST),
    (OtherModelError, ErrorKind.OTHER_MODEL),
)
_RAISED_IN = {Call.LOAD: ErrorKind.LOAD_RAISED, Call.RUN: ErrorKind.UNIT_RAISED}
_LEAVES_ACTOR_ALIVE = frozenset({ErrorKind.RESULT_LOST, ErrorKind.UNIT_RAISED})


def event_of(answer: CallResult, now_s: float) -> Event:
    """The event of a call's result, at `now_s`."""
    if answer.error is not None:
        kind = error_kind(answer.error, answer.call)
        if answer.unit_id is not None and kind in _LEAVES_ACTOR_ALIVE:
            return UnitFailed(answer.actor_id, answer.unit_id, kind, now_s)
        return ActorDied(answer.actor_id, kind, now_s)
    # `run` is the only call with a unit.
    if answer.unit_id is not None:
        return UnitFinished(answer.actor_id, answer.unit_id, now_s)
    is_placed = answer.call is Call.PLACE
    return ActorPlaced(answer.actor_id, now_s) if is_placed else ActorReady(answer.actor_id, now_s)


def error_kind(error: Exception, call: Call) -> ErrorKind:
    """The kind of what Ray raised for a call, by its type and by whether its node was drained."""
    # First: the type is the same as that of an actor that died by itself.
    if isinstance(error, ray_errors.RayActorError) and error.preempted:
        return ErrorKind.PREEMPTED
    for error_type, kind in _ERROR_KINDS:
        if isinstance(error, error_type):
            return kind
    if isinstance(error, ray_errors.RayTaskError):
        return _RAISED_IN.get(call, ErrorKind.INTERNAL)
    return ErrorKind.INTERNAL


def cause_of(error: Exception) -> Exception:
    """What was raised in the actor, without Ray's wrapping."""
    cause = getattr(error, "cause", None) if isinstance(error, ray_errors.RayTaskError) else None
    return cause if isinstance(cause, Exception) else error
