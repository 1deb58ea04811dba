"""Each unit ends exactly once, in simulated worlds that misbehave and under arbitrary event sequences."""

from __future__ import annotations

import heapq
import random
import statistics
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.execution.scheduling import prefetch
from jobs.execution.scheduling.books import SchedulerError
from jobs.execution.scheduling.events import (
    Abort,
    AcceptUnit,
    ActorDied,
    ActorPlaced,
    ActorReady,
    Assign,
    Begin,
    Decision,
    Done,
    DropResult,
    Event,
    FailUnit,
    Interrupted,
    Queue,
    StartActor,
    StopActor,
    Tick,
    UnitFailed,
    UnitFinished,
)
from jobs.execution.scheduling.failure import ErrorKind, FailurePolicy
from jobs.execution.scheduling.prefetch import actors_with_next
from jobs.execution.scheduling.scheduler import Scheduler

PLACEMENT_TIMEOUT_S = 30.0
MOST_DELAY = 1.05
"""Of a single sweep's end, relative: another order of units may fit better by chance. 1.012 in 900 worlds."""


def make_scheduler(costs: dict[str, float], max_actors: int = 1, max_attempts: int = 3) -> Scheduler:
    return Scheduler(costs, max_actors, FailurePolicy(max_attempts), PLACEMENT_TIMEOUT_S)


def unit_ids(num_units: int) -> list[str]:
    return [f"u{index}" for index in range(num_units)]


@dataclass
class Ledger:
    """What a test saw happen: how each unit ended, and whether the run did."""

    ends: Counter[str] = field(default_factory=Counter)
    num_done: int = 0
    aborts: list[Abort] = field(default_factory=list)

    def enter(self, decisions: tuple[Decision, ...]) -> None:
        for decision in decisions:
            match decision:
                case AcceptUnit(unit_id=unit_id) | FailUnit(unit_id=unit_id):
                    self.ends[unit_id] += 1
                case Done():
                    self.num_done += 1
                case Abort():
                    self.aborts.append(decision)


def test_longest_waiting_unit_goes_first_and_ties_keep_the_plans_order() -> None:
    scheduler = make_scheduler({"short": 1.0, "long": 9.0, "tie_a": 5.0, "tie_b": 5.0})
    scheduler.start(0.0)
    decisions = scheduler.handle(ActorReady(0, 1.0))
    order: list[str] = []
    while not scheduler.is_closed:
        order += [it.unit_id for it in decisions if isinstance(it, Assign | Begin)]
        decisions = scheduler.handle(UnitFinished(0, order[-1], 2.0))
    assert order == ["long", "tie_a", "tie_b", "short"]


NUM_MANY = 12


def busy_with_next(max_attempts: int = 3) -> Scheduler:
    """An actor that has finished u0 of `NUM_MANY` equal units in a second; it works on u1, and u2 lies ready."""
    scheduler = make_scheduler(dict.fromkeys(unit_ids(NUM_MANY), 1.0), max_attempts=max_attempts)
    scheduler.start(0.0)
    assert scheduler.handle(ActorReady(0, 1.0)) == (Assign(0, "u0", attempt=1),), (
        "nobody knows how fast it is"
    )
    assert scheduler.handle(UnitFinished(0, "u0", 2.0)) == (
        AcceptUnit("u0"),
        Assign(0, "u1", attempt=1),
        Queue(0, "u2"),
    )
    return scheduler


def test_a_busy_actor_has_the_next_unit_lying_ready_and_goes_on_to_it() -> None:
    scheduler = busy_with_next()
    assert scheduler.unit_of(0) == "u1"
    assert scheduler.handle(UnitFinished(0, "u1", 3.0)) == (
        Begin(0, "u2", attempt=1),
        AcceptUnit("u1"),
        Queue(0, "u3"),
    )
    assert scheduler.handle(UnitFailed(0, "u2", ErrorKind.RESULT_LOST, 4.0)) == (
        Begin(0, "u3", attempt=1),
        Queue(0, "u2"),
    )


def test_the_last_units_lie_ready_at_nobody() -> None:
    scheduler, now_s, rest = busy_with_next(), 3.0, []
    for unit_id in unit_ids(NUM_MANY)[1:]:
        decisions = scheduler.handle(UnitFinished(0, unit_id, now_s))
        now_s, rest = now_s + 1, [*rest, *(it.unit_id for it in decisions if isinstance(it, Assign))]
    assert scheduler.is_closed
    assert rest == unit_ids(NUM_MANY)[-4:], "two units take it twice as long as two more"


def test_a_unit_that_lay_ready_at_an_actor_that_died_has_lost_no_attempt() -> None:
    scheduler = busy_with_next(max_attempts=1)
    assert scheduler.handle(ActorDied(0, ErrorKind.ACTOR_DIED, 3.0)) == (
        FailUnit("u1", ErrorKind.ACTOR_DIED, attempts=1),
        StartActor(1),
    )
    assert scheduler.unit_of(0) is None
    assert scheduler.handle(ActorReady(1, 4.0)) == (Assign(1, "u2", attempt=1),)


def test_a_unit_that_lies_ready_may_end_before_it_was_heard_to_begin() -> None:
    scheduler = busy_with_next()
    assert AcceptUnit("u2") in scheduler.handle(UnitFinished(0, "u2", 3.0))
    scheduler.check_integrity()
    assert AcceptUnit("u1") in scheduler.handle(UnitFinished(0, "u1", 3.0))
    scheduler.check_integrity()


def test_an_interrupt_leaves_what_lies_ready_to_the_next_run() -> None:
    scheduler = busy_with_next()
    scheduler.handle(Interrupted(2.0))
    assert scheduler.handle(UnitFinished(0, "u1", 3.0)) == (AcceptUnit("u1"),)
    assert scheduler.handle(UnitFinished(0, "u2", 3.0)) == (AcceptUnit("u2"),), "unless it ends all the same"


def test_actors_of_whom_nothing_is_known_count_as_the_fastest() -> None:
    costs, running, paces = [1.0] * 13, {0: 1.0, 1: 4.0, 2: 1.0}, {0: 1.0, 1: 2.0}
    assert actors_with_next(costs, running, paces, num_actors=2) == [0], (
        "12 are left for 3 a second: not twice 2.5 s"
    )
    assert actors_with_next(costs, running, paces, num_actors=3) == []
    assert actors_with_next(costs * 3, running, paces, num_actors=3) == [0, 1], "2 may be slow itself"
    assert actors_with_next(costs * 3, running, {}, num_actors=3) == []


@dataclass
class Clockwork:
    """Actors of given speeds, each ready at its time; between two units a device waits, unless the next one lies ready."""

    seconds: dict[str, float]
    ready_at_s: list[float]
    speeds: list[float]
    wait_s: float
    events: list[tuple[float, int, Event]] = field(default_factory=list)
    lying: dict[int, str] = field(default_factory=dict)

    def end_s(self, costs: dict[str, float]) -> float:
        """When the last unit ends."""
        scheduler, now_s = make_scheduler(costs, len(self.speeds)), 0.0
        self.obey(scheduler.start(0.0), 0.0)
        while not scheduler.is_closed:
            now_s, _, event = heapq.heappop(self.events)
            if isinstance(event, UnitFinished) and event.actor_id in self.lying:
                self.begin(event.actor_id, self.lying.pop(event.actor_id), now_s)
            self.obey(scheduler.handle(event), now_s)
        return now_s

    def obey(self, decisions: tuple[Decision, ...], now_s: float) -> None:
        for decision in decisions:
            match decision:
                case StartActor(actor_id=actor_id):
                    at_s = self.ready_at_s[actor_id]
                    heapq.heappush(self.events, (at_s, actor_id, ActorReady(actor_id, at_s)))
                case Assign(actor_id=actor_id, unit_id=unit_id):
                    self.begin(actor_id, unit_id, now_s + self.wait_s)
                case Queue(actor_id=actor_id, unit_id=unit_id):
                    self.lying[actor_id] = unit_id

    def begin(self, actor_id: int, unit_id: str, now_s: float) -> None:
        at_s = now_s + self.seconds[unit_id] / self.speeds[actor_id]
        # What happens at one moment is ordered by actors, of whom each has one event to come.
        heapq.heappush(self.events, (at_s, actor_id, UnitFinished(actor_id, unit_id, at_s)))


def end_s(
    costs: dict[str, float],
    ready_at_s: list[float],
    speeds: list[float],
    seconds: dict[str, float] | None = None,
) -> float:
    return Clockwork(seconds or costs, ready_at_s, speeds, wait_s=0.05).end_s(costs)


def test_many_equal_units_end_sooner_with_the_next_one_lying_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = dict.fromkeys(unit_ids(100), 1.0)
    ahead = end_s(costs, [0.0, 1.0], [1.0, 1.0])
    monkeypatch.setattr(prefetch, "RESERVE", float("inf"))
    assert ahead < end_s(costs, [0.0, 1.0], [1.0, 1.0]) - 40 * 0.05


@pytest.mark.parametrize("num_actors", [2, 4, 8])
def test_no_sweep_ends_later_for_units_that_lay_ready(
    num_actors: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths that differ 32-fold, times that costs foretell by a quarter, actors half as fast as others."""
    rng = random.Random(seed)
    worlds = []
    for _ in range(60):
        names = unit_ids(rng.randrange(2 * num_actors, 30 * num_actors))
        costs = {name: float(rng.choice((1, 2, 4, 8, 16, 32))) for name in names}
        seconds = {name: cost * rng.uniform(0.8, 1.25) for name, cost in costs.items()}
        speeds = [rng.choice((1.0, 1.0, 1.0, 0.5)) for _ in range(num_actors)]
        worlds.append((costs, [3 * rng.random() for _ in speeds], speeds, seconds))
    ahead = [end_s(*world) for world in worlds]
    monkeypatch.setattr(prefetch, "RESERVE", float("inf"))
    ratios = [end / end_s(*world) for end, world in zip(ahead, worlds, strict=True)]
    assert statistics.mean(ratios) <= 1
    assert max(ratios) < MOST_DELAY


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


def test_who_waits_for_a_place_has_time_for_that_of_one_that_died() -> None:
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


def any_event(names: list[str]) -> st.SearchStrategy[Event]:
    actor, unit = st.integers(0, 6), st.sampled_from(names)
    kind, now_s = st.sampled_from(list(ErrorKind)), st.floats(0, 100)
    return st.one_of(
        st.builds(ActorPlaced, actor, now_s),
        st.builds(ActorReady, actor, now_s),
        st.builds(ActorDied, actor, kind, now_s),
        st.builds(UnitFinished, actor, unit, now_s),
        st.builds(UnitFailed, actor, unit, kind, now_s),
        st.builds(Tick, now_s),
        st.builds(Interrupted, now_s),
    )


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))
def test_no_event_sequence_ends_a_unit_twice_or_breaks_the_books(
    data: st.DataObject, num_units: int, max_actors: int, max_attempts: int
) -> None:
    names = unit_ids(num_units)
    scheduler = make_scheduler({name: float(len(name)) for name in names}, max_actors, max_attempts)
    ledger = Ledger()
    ledger.enter(scheduler.start(0.0))
    for event in data.draw(st.lists(any_event(names), max_size=40)):
        was_closed = scheduler.is_closed
        decisions = scheduler.handle(event)
        ledger.enter(decisions)
        scheduler.check_integrity()
        assert not was_closed or all(isinstance(it, AcceptUnit | DropResult) for it in decisions)
    assert all(count == 1 for count in ledger.ends.values())
    assert ledger.num_done + len(ledger.aborts) <= 1
    assert ledger.num_done == 0 or set(ledger.ends) == set(names)


@dataclass
class World:
    """Actors that load, work, die, fail and report late as the drawn numbers say; it obeys every decision."""

    data: st.DataObject
    starting: set[int] = field(default_factory=set)
    working: dict[int, str] = field(default_factory=dict)
    ready: dict[int, str] = field(default_factory=dict)
    ghosts: list[tuple[int, str]] = field(default_factory=list)
    assigned_twice: list[Assign | Queue] = field(default_factory=list)

    def obey(self, decisions: tuple[Decision, ...]) -> None:
        for decision in decisions:
            match decision:
                case StartActor(actor_id=actor_id):
                    self.starting.add(actor_id)
                case StopActor(actor_id=actor_id):
                    self.starting.discard(actor_id)
                case Assign(actor_id=actor_id, unit_id=unit_id):
                    if actor_id in self.working:
                        self.assigned_twice.append(decision)
                    self.working[actor_id] = unit_id
                case Queue(actor_id=actor_id, unit_id=unit_id):
                    if actor_id not in self.working or actor_id in self.ready:
                        self.assigned_twice.append(decision)
                    self.ready[actor_id] = unit_id

    def next_event(self, is_calm: bool, now_s: float) -> Event:
        """One thing that can happen now; a calm world only loads and finishes."""
        choices: list[Event] = [ActorReady(actor_id, now_s) for actor_id in sorted(self.starting)]
        choices += [UnitFinished(actor_id, unit, now_s) for actor_id, unit in sorted(self.working.items())]
        if not is_calm:
            choices += [UnitFinished(actor_id, unit, now_s) for actor_id, unit in self.ghosts]
            choices += [
                ActorDied(actor_id, ErrorKind.ACTOR_DIED, now_s) for actor_id in sorted(self.starting)
            ]
            for actor_id, unit in sorted(self.working.items()):
                choices += [ActorDied(actor_id, ErrorKind.NODE_DIED, now_s)]
                choices += [UnitFailed(actor_id, unit, ErrorKind.UNIT_RAISED, now_s)]
                choices += [UnitFailed(actor_id, unit, ErrorKind.RESULT_LOST, now_s)]
        return self.data.draw(st.sampled_from(choices))

    def happens(self, event: Event) -> None:
        match event:
            case ActorReady(actor_id=actor_id):
                self.starting.discard(actor_id)
            case ActorDied(actor_id=actor_id):
                self.starting.discard(actor_id)
                held = [units.pop(actor_id) for units in (self.working, self.ready) if actor_id in units]
                self.ghosts += [(actor_id, unit) for unit in held]
            case UnitFinished(actor_id=actor_id, unit_id=unit) | UnitFailed(actor_id=actor_id, unit_id=unit):
                if self.working.get(actor_id) == unit:
                    del self.working[actor_id]
                    if actor_id in self.ready:
                        self.working[actor_id] = self.ready.pop(actor_id)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3), st.integers(0, 30))
def test_in_any_world_every_unit_ends_exactly_once_and_the_run_is_done(
    data: st.DataObject, num_units: int, max_actors: int, max_attempts: int, num_wild: int
) -> None:
    costs = {name: data.draw(st.floats(0, 10)) for name in unit_ids(num_units)}
    scheduler = make_scheduler(costs, max_actors, max_attempts)
    world, ledger = World(data), Ledger()
    decisions = scheduler.start(0.0)
    for step in range(num_wild + 10 * num_units * max_attempts + 10 * max_actors):
        world.obey(decisions)
        ledger.enter(decisions)
        scheduler.check_integrity()
        if scheduler.is_closed:
            break
        # Less than the time that an actor may take to be placed.
        event = world.next_event(is_calm=step >= num_wild, now_s=step / 100)
        world.happens(event)
        decisions = scheduler.handle(event)
    assert ledger.ends == dict.fromkeys(costs, 1)
    assert ledger.num_done == 1
    assert not world.assigned_twice
