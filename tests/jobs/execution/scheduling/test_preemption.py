"""Machines that are taken away: what it costs a unit, a place and the run, against a count kept apart from the scheduler."""

from __future__ import annotations

import random

import pytest

from jobs.execution.scheduling.events import (
    AcceptUnit,
    ActorDied,
    ActorReady,
    Assign,
    Decision,
    Done,
    FailUnit,
    StartActor,
    UnitFinished,
)
from jobs.execution.scheduling.failure import ErrorKind
from jobs.execution.scheduling.scheduler import Scheduler
from tests.fakes.schedulers import make_scheduler

OWN = (ErrorKind.ACTOR_DIED, ErrorKind.NODE_DIED, ErrorKind.OUT_OF_HOST_MEMORY, ErrorKind.DEVICE_LOST)


def lose(scheduler: Scheduler, kinds: list[ErrorKind]) -> list[tuple[Decision, ...]]:
    """The decisions at each death; actors are ready one after the other, and each dies with its unit as `kinds` say."""
    scheduler.start(0.0)
    seen = []
    for actor_id, kind in enumerate(kinds):
        scheduler.handle(ActorReady(actor_id, float(actor_id)))
        seen.append(scheduler.handle(ActorDied(actor_id, kind, float(actor_id))))
        scheduler.check_integrity()
    return seen


def test_more_preemptions_than_attempts_end_in_a_result() -> None:
    scheduler = make_scheduler({"u": 1.0}, max_attempts=3)
    seen = lose(scheduler, [ErrorKind.PREEMPTED] * 7)
    assert seen == [(StartActor(number),) for number in range(1, 8)]
    assert scheduler.handle(ActorReady(7, 8.0)) == (Assign(7, "u", attempt=8),)
    assert scheduler.handle(UnitFinished(7, "u", 9.0)) == (AcceptUnit("u"), Done())


def test_a_unit_longer_than_any_machine_stays_ends_with_that_word() -> None:
    seen = lose(make_scheduler({"u": 1.0}, max_preemptions=4), [ErrorKind.PREEMPTED] * 4)
    assert seen[-1] == (FailUnit("u", ErrorKind.PREEMPTED, attempts=4, preemptions=4), Done())


def test_either_budget_counts_only_its_own_losses(seed: int) -> None:
    drawn = random.Random(seed)
    for _ in range(60):
        max_attempts, max_preemptions = drawn.randint(1, 4), drawn.randint(1, 6)
        kinds = drawn.choices([ErrorKind.PREEMPTED, *OWN], weights=[4, 1, 1, 1, 1], k=12)
        # The budgets once more, by counting prefixes.
        end = next(
            number
            for number in range(1, 13)
            if kinds[:number].count(ErrorKind.PREEMPTED) == max_preemptions
            or number - kinds[:number].count(ErrorKind.PREEMPTED) == max_attempts
        )
        preempted = kinds[:end].count(ErrorKind.PREEMPTED)
        scheduler = make_scheduler({"u": 1.0}, 1, max_attempts, max_preemptions)
        seen = lose(scheduler, kinds[:end])
        ends = [it for decisions in seen for it in decisions if isinstance(it, FailUnit)]
        assert ends == [FailUnit("u", kinds[end - 1], end, preempted)]


@pytest.mark.parametrize("num_before", [0, 1, 5])
def test_the_attempt_without_user_policies_is_the_last_of_its_own_budget(num_before: int) -> None:
    scheduler = make_scheduler({"u": 1.0}, max_attempts=3)
    kinds = [ErrorKind.PREEMPTED] * num_before + [ErrorKind.ACTOR_DIED, ErrorKind.ACTOR_DIED]
    lose(scheduler, kinds)
    last = scheduler.handle(ActorReady(len(kinds), 99.0))
    assert last == (Assign(len(kinds), "u", attempt=len(kinds) + 1, without_user_policies=True),)


def test_preemptions_alone_leave_no_policy_out_and_no_place_empty() -> None:
    scheduler = make_scheduler({"u": 1.0, "v": 0.5}, max_actors=2, max_attempts=2)
    scheduler.start(0.0)
    scheduler.handle(ActorReady(1, 0.0))
    for actor_id in (0, 2, 3, 4):
        scheduler.handle(ActorReady(actor_id, 1.0))
        started = scheduler.handle(ActorDied(actor_id, ErrorKind.PREEMPTED, 1.0))
        assert [it for it in started if isinstance(it, StartActor)] or actor_id == 4
    ready = scheduler.handle(ActorReady(5, 2.0))
    assert all(not it.without_user_policies for it in ready if isinstance(it, Assign))


def test_a_zone_that_is_taken_back_while_models_load_is_no_reason_to_give_up() -> None:
    scheduler = make_scheduler({f"u{index}": 1.0 for index in range(4)}, max_actors=4, max_preemptions=2)
    started = [it.actor_id for it in scheduler.start(0.0) if isinstance(it, StartActor)]
    ends: list[FailUnit] = []
    for _ in range(7):  # one less than two rounds of four
        decisions = scheduler.handle(ActorDied(started.pop(0), ErrorKind.PREEMPTED, 1.0))
        started += [it.actor_id for it in decisions if isinstance(it, StartActor)]
        ends += [it for it in decisions if isinstance(it, FailUnit)]
    assert len(started) >= 1 and not ends
    assert any(isinstance(it, Assign) for it in scheduler.handle(ActorReady(started[0], 2.0)))
