"""A place with another model under the planned one's name is given up for good; the run goes on if there are others."""

from __future__ import annotations

import pytest

from jobs.execution.scheduling.events import (
    Abort,
    AcceptUnit,
    ActorDied,
    ActorPlaced,
    ActorReady,
    Assign,
    StartActor,
    Tick,
    UnitFinished,
)
from jobs.execution.scheduling.failure import ErrorKind, FailureDecision, FailurePolicy
from tests.fakes.schedulers import PLACEMENT_TIMEOUT_S, make_scheduler

OTHER = ErrorKind.OTHER_MODEL
LONG_S = 20 * PLACEMENT_TIMEOUT_S
"""Enough for a place that failed to be tried again, if it were."""


def test_it_is_never_tried_again() -> None:
    policy = FailurePolicy(max_attempts=3)
    assert policy.decide(OTHER, 1) is FailureDecision.RAISE
    assert policy.decide(OTHER, 1, has_worked=True) is FailureDecision.GIVE_UP


def test_the_only_actor_ends_the_run() -> None:
    scheduler = make_scheduler({"u": 1.0})
    scheduler.start(0.0)
    assert scheduler.handle(ActorDied(0, OTHER, 1.0)) == (Abort(OTHER),)


@pytest.mark.parametrize("comes_first", [False, True])
def test_others_do_the_work_and_none_is_started_in_its_place(comes_first: bool) -> None:
    scheduler = make_scheduler({"u": 2.0, "v": 1.0, "w": 1.0}, max_actors=2)
    scheduler.start(0.0)
    for actor_id in (0, 1):
        scheduler.handle(ActorPlaced(actor_id, 1.0))
    death, ready = ActorDied(0, OTHER, 2.0), ActorReady(1, 2.0)
    decisions = [
        it for event in ((death, ready) if comes_first else (ready, death)) for it in scheduler.handle(event)
    ]
    assert decisions == [Assign(1, "u", attempt=1)]
    now_s = 2.0
    for unit_id in ("u", "v", "w"):
        now_s += LONG_S
        assert not any(isinstance(it, StartActor) for it in scheduler.handle(Tick(now_s - LONG_S / 2)))
        decisions = list(scheduler.handle(UnitFinished(1, unit_id, now_s)))
        assert AcceptUnit(unit_id) in decisions
        assert not any(isinstance(it, StartActor) for it in decisions)
    assert scheduler.is_closed


def test_the_run_ends_when_every_place_has_another_model() -> None:
    scheduler = make_scheduler({"u": 1.0, "v": 1.0}, max_actors=2)
    scheduler.start(0.0)
    scheduler.handle(ActorReady(0, 1.0))
    assert scheduler.handle(ActorDied(1, OTHER, 2.0)) == ()
    assert scheduler.handle(ActorDied(0, ErrorKind.NODE_DIED, 3.0)) == (StartActor(2),)
    assert scheduler.handle(ActorDied(2, OTHER, 4.0)) == (Abort(OTHER),)
