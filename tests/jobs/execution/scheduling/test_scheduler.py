"""What the scheduler decides at each event: which unit goes where, what a death or an interrupt costs, when a run ends."""

from __future__ import annotations

import pytest

from jobs.execution.scheduling.books import SchedulerError
from jobs.execution.scheduling.events import (
    Abort,
    AcceptUnit,
    ActorDied,
    ActorPlaced,
    ActorReady,
    Assign,
    Begin,
    Done,
    DropResult,
    FailUnit,
    Interrupted,
    StartActor,
    StopActor,
    Tick,
    UnitFinished,
)
from jobs.execution.scheduling.failure import ErrorKind
from tests.fakes.schedulers import PLACEMENT_TIMEOUT_S, Ledger, make_scheduler


def test_longest_waiting_unit_goes_first_and_ties_keep_the_plans_order() -> None:
    scheduler = make_scheduler({"short": 1.0, "long": 9.0, "tie_a": 5.0, "tie_b": 5.0})
    scheduler.start(0.0)
    decisions = scheduler.handle(ActorReady(0, 1.0))
    order: list[str] = []
    while not scheduler.is_closed:
        order += [it.unit_id for it in decisions if isinstance(it, Assign | Begin)]
        decisions = scheduler.handle(UnitFinished(0, order[-1], 2.0))
    assert order == ["long", "tie_a", "tie_b", "short"]


def test_no_more_actors_are_started_than_units_wait() -> None:
    assert make_scheduler({"only": 1.0}, max_actors=8).start(0.0) == (StartActor(0),)


def test_nothing_to_do_is_done_at_once() -> None:
    assert make_scheduler({}).start(0.0) == (Done(),)


def test_dead_actors_unit_goes_to_a_new_actor_and_ends_there() -> None:
    scheduler = make_scheduler({"u": 1.0})
    scheduler.start(0.0)
    assert scheduler.handle(ActorReady(0, 1.0)) == (Assign(0, "u", attempt=1),)
    assert scheduler.handle(ActorDied(0, ErrorKind.ACTOR_DIED, 2.0)) == (StartActor(1),)
    assert scheduler.handle(ActorReady(1, 3.0)) == (Assign(1, "u", attempt=2),)
    assert scheduler.handle(UnitFinished(1, "u", 4.0)) == (AcceptUnit("u"), Done())


def test_late_result_of_an_actor_presumed_dead_counts_and_the_retrys_is_dropped() -> None:
    scheduler = make_scheduler({"u": 2.0, "v": 1.0})
    scheduler.start(0.0)
    scheduler.handle(ActorReady(0, 1.0))
    scheduler.handle(ActorDied(0, ErrorKind.NODE_DIED, 2.0))
    assert scheduler.handle(ActorReady(1, 3.0)) == (Assign(1, "u", attempt=2),)
    assert AcceptUnit("u") in scheduler.handle(UnitFinished(0, "u", 4.0))
    assert scheduler.handle(UnitFinished(1, "u", 5.0)) == (DropResult("u"), Assign(1, "v", attempt=1))


def test_unit_that_kills_every_actor_is_failed_after_max_attempts_and_the_rest_runs() -> None:
    scheduler = make_scheduler({"killer": 9.0, "good": 1.0}, max_attempts=2)
    scheduler.start(0.0)
    for actor_id in (0, 1):
        scheduler.handle(ActorReady(actor_id, 1.0))
        decisions = scheduler.handle(ActorDied(actor_id, ErrorKind.ACTOR_DIED, 2.0))
    assert decisions == (FailUnit("killer", ErrorKind.ACTOR_DIED, attempts=2), StartActor(2))
    assert scheduler.handle(ActorReady(2, 3.0)) == (Assign(2, "good", attempt=1),)


def test_actors_that_always_die_while_loading_end_the_run_with_failed_units() -> None:
    scheduler = make_scheduler({"a": 2.0, "b": 1.0}, max_attempts=2)
    ledger = Ledger()
    ledger.enter(scheduler.start(0.0))
    for actor_id in (0, 1):
        ledger.enter(scheduler.handle(ActorDied(actor_id, ErrorKind.ACTOR_DIED, 1.0)))
    assert ledger.ends == {"a": 1, "b": 1}
    assert ledger.num_done == 1


def test_model_that_cannot_be_loaded_aborts_the_run() -> None:
    scheduler = make_scheduler({"u": 1.0})
    scheduler.start(0.0)
    assert scheduler.handle(ActorDied(0, ErrorKind.LOAD_RAISED, 1.0)) == (Abort(ErrorKind.LOAD_RAISED),)


def test_actor_that_is_never_placed_is_withdrawn_and_the_run_aborts() -> None:
    scheduler = make_scheduler({"u": 1.0})
    scheduler.start(0.0)
    assert scheduler.handle(Tick(PLACEMENT_TIMEOUT_S - 1)) == ()
    assert scheduler.handle(Tick(PLACEMENT_TIMEOUT_S)) == (
        StopActor(0, ErrorKind.NO_RESOURCES),
        Abort(ErrorKind.NO_RESOURCES),
    )


def test_slow_loading_of_a_placed_actor_is_waited_for() -> None:
    scheduler = make_scheduler({"u": 1.0})
    scheduler.start(0.0)
    scheduler.handle(ActorPlaced(0, 1.0))
    assert scheduler.handle(Tick(100 * PLACEMENT_TIMEOUT_S)) == ()


def test_run_goes_on_with_the_actors_that_found_a_place_and_takes_others_when_there_is_one() -> None:
    scheduler = make_scheduler({"u": 2.0, "v": 1.0}, max_actors=2)
    scheduler.start(0.0)
    scheduler.handle(ActorReady(0, 1.0))
    assert scheduler.handle(Tick(10 * PLACEMENT_TIMEOUT_S)) == ()
    assert scheduler.handle(ActorReady(1, 20 * PLACEMENT_TIMEOUT_S)) == (Assign(1, "v", attempt=1),)


def test_an_actor_that_waits_for_a_place_has_its_full_time_for_that_of_a_dead_one() -> None:
    scheduler = make_scheduler({"u": 2.0, "v": 1.0}, max_actors=2)
    scheduler.start(0.0)
    scheduler.handle(ActorReady(0, 1.0))
    scheduler.handle(Tick(100.0))
    assert scheduler.handle(ActorDied(0, ErrorKind.NODE_DIED, 100.1)) == (StartActor(2),)
    assert scheduler.handle(Tick(99.0 + PLACEMENT_TIMEOUT_S)) == ()
    assert scheduler.handle(Tick(100.0 + PLACEMENT_TIMEOUT_S)) == (StopActor(1, ErrorKind.NO_RESOURCES),)


def test_late_death_of_a_withdrawn_actor_starts_no_other() -> None:
    scheduler = make_scheduler({"u": 2.0, "v": 1.0}, max_actors=2)
    scheduler.start(0.0)
    assert scheduler.handle(ActorDied(0, ErrorKind.ACTOR_DIED, 10.0)) == (StartActor(2),)
    assert scheduler.handle(Tick(PLACEMENT_TIMEOUT_S)) == (StopActor(1, ErrorKind.NO_RESOURCES),)
    assert scheduler.handle(ActorDied(1, ErrorKind.ACTOR_DIED, 31.0)) == ()


def test_place_of_a_dead_actor_is_used_again_after_others_found_none() -> None:
    scheduler = make_scheduler({"u": 2.0, "v": 1.0}, max_actors=2)
    scheduler.start(0.0)
    scheduler.handle(ActorReady(0, 1.0))
    scheduler.handle(Tick(PLACEMENT_TIMEOUT_S))
    assert StartActor(2) in scheduler.handle(ActorDied(0, ErrorKind.ACTOR_DIED, 31.0))


def test_interrupt_leaves_a_unit_that_fails_afterwards_to_the_next_run() -> None:
    scheduler = make_scheduler({"u": 2.0}, max_attempts=1)
    scheduler.start(0.0)
    scheduler.handle(ActorReady(0, 1.0))
    scheduler.handle(Interrupted(2.0))
    assert scheduler.handle(ActorDied(0, ErrorKind.ACTOR_DIED, 3.0)) == ()


def test_interrupt_hands_out_nothing_more_and_still_accepts_finished_units() -> None:
    scheduler = make_scheduler({"u": 2.0, "v": 1.0})
    scheduler.start(0.0)
    scheduler.handle(ActorReady(0, 1.0))
    assert scheduler.handle(Interrupted(2.0)) == ()
    assert scheduler.handle(UnitFinished(0, "u", 3.0)) == (AcceptUnit("u"),)


def test_event_for_a_unit_that_was_never_planned_is_an_error() -> None:
    scheduler = make_scheduler({"u": 1.0})
    scheduler.start(0.0)
    with pytest.raises(SchedulerError, match="stranger"):
        scheduler.handle(UnitFinished(0, "stranger", 1.0))


def test_check_integrity_sees_a_unit_whose_actor_does_not_know_it() -> None:
    scheduler = make_scheduler({"u": 1.0})
    scheduler.start(0.0)
    scheduler.handle(ActorReady(0, 1.0))
    scheduler._actors.by_id[0].unit_id = "other"
    with pytest.raises(SchedulerError, match="says otherwise"):
        scheduler.check_integrity()
