"""Devices that are sick, units that kill their actor, actors that hang: what each costs, in worlds with a clock."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from jobs.execution.scheduling.actors import LEAST_S, LOAD_S, TIMES, UNKNOWN_S
from jobs.execution.scheduling.events import (
    Abort,
    AcceptUnit,
    ActorDied,
    ActorPlaced,
    ActorReady,
    Assign,
    Begin,
    Decision,
    Event,
    FailUnit,
    Queue,
    StartActor,
    StopActor,
    Tick,
    UnitFailed,
    UnitFinished,
)
from jobs.execution.scheduling.failure import ErrorKind, FailurePolicy
from jobs.execution.scheduling.scheduler import Scheduler

MAX_ATTEMPTS = 3
PLACEMENT_TIMEOUT_S = 600.0
NUM_UNITS = 100
LOAD_TIME_S = 60.0
DEATH_AFTER_S = 2.0
TICK_S = 30.0


def make_scheduler(costs: dict[str, float], max_actors: int = 1) -> Scheduler:
    return Scheduler(costs, max_actors, FailurePolicy(MAX_ATTEMPTS), PLACEMENT_TIMEOUT_S)


@dataclass
class Site:
    """Devices, of which some are `sick`: a model loads there or, where ``sick_at`` is "load", raises, and every unit kills.

    Units in `killers` kill their actor anywhere; with `has_killer` every unit does unless users' policies are left out
    of it (`reduced`). A new actor gets any device that is free.
    """

    unit_s: float
    num_units: int
    num_devices: int
    sick: frozenset[int]
    rng: random.Random
    sick_at: str = "run"
    killers: frozenset[str] = frozenset()
    has_killer: bool = False
    reduced: set[str] = field(default_factory=set)
    events: list[tuple[float, int, Event]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    device_of: dict[int, int] = field(default_factory=dict)
    queued: dict[int, str] = field(default_factory=dict)
    ends: Counter[type[Decision]] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    num_started: int = 0
    busy_s: Counter[int] = field(default_factory=Counter)

    def run(self) -> float:
        """When the last unit ends, in seconds."""
        names = [f"u{index:03}" for index in range(self.num_units)]
        scheduler, now_s = make_scheduler(dict.fromkeys(names, 1.0), self.num_devices), 0.0
        self.obey(scheduler.start(0.0), 0.0)
        next_tick_s = TICK_S
        while not scheduler.is_closed:
            if not self.events or self.events[0][0] > next_tick_s:
                now_s, event = next_tick_s, Tick(next_tick_s)
                next_tick_s += TICK_S
            else:
                now_s, _, event = heapq.heappop(self.events)
            match event:
                case ActorDied(actor_id=actor_id):
                    self.device_of.pop(actor_id)
                    self.queued.pop(actor_id, None)
                case UnitFinished(actor_id=actor_id) if actor_id in self.queued:
                    self.begin(actor_id, self.queued.pop(actor_id), now_s)
            decisions = scheduler.handle(event)
            scheduler.check_integrity()
            self.obey(decisions, now_s)
        return now_s

    def obey(self, decisions: tuple[Decision, ...], now_s: float) -> None:
        for decision in decisions:
            self.ends[type(decision)] += 1
            match decision:
                case StartActor(actor_id=actor_id):
                    free = sorted(set(range(self.num_devices)) - set(self.device_of.values()))
                    self.device_of[actor_id] = device = self.rng.choice(free)
                    self.num_started += 1
                    self.push(ActorPlaced(actor_id, now_s + 1.0))
                    at_s = now_s + LOAD_TIME_S
                    if device in self.sick and self.sick_at == "load":
                        # Not before any is ready: what loads nowhere is the model's fault.
                        self.push(ActorDied(actor_id, ErrorKind.LOAD_RAISED, at_s + 5.0))
                    else:
                        self.push(ActorReady(actor_id, at_s))
                case Assign(actor_id=actor_id, unit_id=unit_id, without_user_policies=without_user_policies):
                    self.note(unit_id, without_user_policies)
                    self.begin(actor_id, unit_id, now_s)
                case Queue(actor_id=actor_id, unit_id=unit_id, without_user_policies=without_user_policies):
                    self.note(unit_id, without_user_policies)
                    self.queued[actor_id] = unit_id
                case FailUnit(unit_id=unit_id):
                    self.failed.append(unit_id)

    def begin(self, actor_id: int, unit_id: str, now_s: float) -> None:
        device = self.device_of[actor_id]
        is_whole = unit_id not in self.reduced
        if unit_id in self.killers or device in self.sick or (self.has_killer and is_whole):
            self.push(ActorDied(actor_id, ErrorKind.DEVICE_LOST, now_s + DEATH_AFTER_S))
        else:
            self.busy_s[device] += self.unit_s
            is_whole = is_whole or not self.has_killer
            self.push(UnitFinished(actor_id, unit_id, now_s + self.unit_s, is_whole))

    def note(self, unit_id: str, without_user_policies: bool) -> None:
        if without_user_policies:
            self.reduced.add(unit_id)

    def push(self, event: Event) -> None:
        heapq.heappush(self.events, (event.now_s, next(self.numbers), event))


@pytest.mark.parametrize("sick_at", ["run", "load"])
@pytest.mark.parametrize("unit_s", [20.0, 600.0])
@pytest.mark.parametrize(("num_devices", "num_sick"), [(2, 1), (4, 1), (4, 2), (8, 3)])
def test_sick_devices_cost_no_unit_and_few_starts(
    num_devices: int, num_sick: int, unit_s: float, sick_at: str, seed: int
) -> None:
    rng = random.Random(seed)
    sick = frozenset(rng.sample(range(num_devices), num_sick))
    site = Site(unit_s, NUM_UNITS, num_devices, sick, rng, sick_at)
    end_s = site.run()
    assert site.failed == []
    assert site.reduced == set(), "or policies would be left out that have done nothing"
    assert site.ends[AcceptUnit] == NUM_UNITS
    # Each is tried as often as units are, and then once in a while.
    num_tries = num_sick * (MAX_ATTEMPTS + 1 + end_s / PLACEMENT_TIMEOUT_S)
    assert site.num_started <= num_devices + num_tries
    num_well = num_devices - num_sick
    assert end_s <= 1.1 * NUM_UNITS * unit_s / num_well + 3 * unit_s + 3 * LOAD_TIME_S


@pytest.mark.parametrize("num_devices", [1, 2, 4])
@pytest.mark.parametrize("num_killers", [1, 3, 12])
def test_units_that_kill_fail_alone_and_leave_all_places_in_use(
    num_devices: int, num_killers: int, seed: int
) -> None:
    """They come first, so that no place has shown what it is worth."""
    killers = frozenset(f"u{index:03}" for index in range(num_killers))
    site = Site(300.0, 100, num_devices, frozenset(), random.Random(seed), killers=killers)
    site.run()
    assert sorted(site.failed) == sorted(killers)
    assert site.ends[AcceptUnit] == 100 - num_killers
    fair_s = sum(site.busy_s.values()) / num_devices
    assert min(site.busy_s[device] for device in range(num_devices)) >= 0.5 * fair_s


@pytest.mark.parametrize("num_devices", [1, 4, 8])
@pytest.mark.parametrize("unit_s", [60.0, 300.0])
def test_a_policy_that_kills_in_every_unit_keeps_no_device_from_the_others(
    unit_s: float, num_devices: int, seed: int
) -> None:
    site = Site(unit_s, NUM_UNITS, num_devices, frozenset(), random.Random(seed), has_killer=True)
    end_s = site.run()
    assert site.failed == [] and len(site.reduced) == NUM_UNITS
    each_s = unit_s + (MAX_ATTEMPTS - 1) * (LOAD_TIME_S + DEATH_AFTER_S)
    assert end_s <= 2.5 * NUM_UNITS * each_s / num_devices


def two_ready(num_units: int = 2) -> Scheduler:
    scheduler = make_scheduler({f"u{index}": 1.0 for index in range(num_units)}, max_actors=2)
    scheduler.start(0.0)
    scheduler.handle(ActorReady(0, 1.0))
    scheduler.handle(ActorReady(1, 1.0))
    return scheduler


def test_a_lost_unit_is_tried_again_in_a_sound_place() -> None:
    scheduler = two_ready(num_units=3)
    scheduler.handle(ActorDied(0, ErrorKind.ACTOR_DIED, 2.0))
    assert scheduler.handle(ActorReady(2, 3.0)) == (Assign(2, "u2", attempt=1),), (
        "its place is where an actor died of u0"
    )
    assert Assign(1, "u0", attempt=2) in scheduler.handle(UnitFinished(1, "u1", 4.0))


def test_a_lost_unit_is_tried_again_anywhere_if_no_other_actor_is_ready() -> None:
    scheduler = make_scheduler({"u": 1.0})
    scheduler.start(0.0)
    given = [scheduler.handle(ActorReady(0, 1.0))]
    for actor_id in (0, 1):
        scheduler.handle(ActorDied(actor_id, ErrorKind.ACTOR_DIED, 2.0))
        given.append(scheduler.handle(ActorReady(actor_id + 1, 3.0)))
    assert given == [
        (Assign(0, "u", attempt=1),),
        (Assign(1, "u", attempt=2),),
        (Assign(2, "u", attempt=3, without_user_policies=True),),
    ]


@pytest.mark.parametrize("kind", [ErrorKind.NODE_DIED, ErrorKind.RESULT_LOST])
def test_a_death_that_no_unit_can_cause_leaves_out_no_policy(kind: ErrorKind) -> None:
    scheduler = make_scheduler({"u": 1.0})
    scheduler.start(0.0)
    scheduler.handle(ActorReady(0, 1.0))
    scheduler.handle(ActorDied(0, ErrorKind.ACTOR_DIED, 2.0))
    scheduler.handle(ActorReady(1, 3.0))
    if kind is ErrorKind.NODE_DIED:
        scheduler.handle(ActorDied(1, kind, 4.0))
        given = scheduler.handle(ActorReady(2, 5.0))
    else:
        given = scheduler.handle(UnitFailed(1, "u", kind, 4.0))
    assert [(it.attempt, it.without_user_policies) for it in given if isinstance(it, Assign)] == [(3, False)]


@pytest.mark.parametrize("loads", ["fails and works", "fails twice"])
def test_a_load_that_fails_first_ends_the_run_only_if_the_others_fail_too(loads: str) -> None:
    scheduler = make_scheduler({"u": 2.0, "v": 1.0}, max_actors=2)
    scheduler.start(0.0)
    for actor_id in (0, 1):
        scheduler.handle(ActorPlaced(actor_id, 1.0))
    assert scheduler.handle(ActorDied(0, ErrorKind.LOAD_RAISED, 5.0)) == ()
    if loads == "fails twice":
        assert scheduler.handle(ActorDied(1, ErrorKind.LOAD_RAISED, 60.0)) == (Abort(ErrorKind.LOAD_RAISED),)
    else:
        assert scheduler.handle(ActorReady(1, 60.0)) == (Assign(1, "u", attempt=1), StartActor(2))


def test_a_load_that_fails_where_others_work_ends_no_run() -> None:
    scheduler = two_ready(num_units=3)
    scheduler.handle(ActorDied(0, ErrorKind.NODE_DIED, 2.0))
    for actor_id in (2, 3):
        decisions = scheduler.handle(ActorDied(actor_id, ErrorKind.LOAD_RAISED, 3.0))
        assert not any(isinstance(it, Abort | FailUnit) for it in decisions)
    assert Assign(1, "u0", 2) in scheduler.handle(UnitFinished(1, "u1", 4.0))
    scheduler.handle(ActorDied(1, ErrorKind.NODE_DIED, 5.0))
    for actor_id in range(4, 4 + MAX_ATTEMPTS + 1):
        assert not scheduler.is_closed
        decisions = scheduler.handle(ActorDied(actor_id, ErrorKind.LOAD_RAISED, 6.0))
    assert decisions == (Abort(ErrorKind.LOAD_RAISED),), "no actor is left, and it is what ends the run"


@pytest.mark.parametrize("is_known", [False, True])
def test_an_actor_that_reports_no_more_is_stopped_and_its_unit_tried_again(is_known: bool) -> None:
    scheduler, began_s = make_scheduler({"a": 1000.0, "b": 1000.0, "c": 9.0}), 1.0
    scheduler.start(0.0)
    scheduler.handle(ActorReady(0, began_s))
    timeout_s = UNKNOWN_S
    if is_known:
        began_s = 801.0
        scheduler.handle(UnitFinished(0, "a", began_s))
        timeout_s = TIMES * 800.0
        assert timeout_s > LEAST_S
    unit_id = scheduler.unit_of(0)
    assert scheduler.handle(Tick(began_s + timeout_s - 1)) == ()
    now_s = began_s + timeout_s
    assert scheduler.handle(Tick(now_s)) == (StopActor(0, ErrorKind.STUCK, unit_id), StartActor(1))
    assert scheduler.handle(ActorReady(1, now_s)) == (Assign(1, unit_id, attempt=2),)


def test_the_timeout_of_a_queued_unit_counts_from_its_own_beginning() -> None:
    scheduler = make_scheduler({f"u{index:02}": 1.0 for index in range(12)})
    scheduler.start(0.0)
    for event in (ActorReady(0, 1.0), UnitFinished(0, "u00", 2.0)):
        scheduler.handle(event)
    assert Begin(0, "u02", 1) in scheduler.handle(UnitFinished(0, "u01", LEAST_S))
    assert scheduler.handle(Tick(2 * LEAST_S - 1)) == ()
    assert StopActor(0, ErrorKind.STUCK, "u02") in scheduler.handle(Tick(2 * LEAST_S + TIMES * LEAST_S))


def test_a_model_that_does_not_finish_loading_is_given_up_in_the_end() -> None:
    scheduler = make_scheduler({"u": 1.0})
    scheduler.start(0.0)
    decisions: tuple[Decision, ...] = ()
    for actor_id in range(MAX_ATTEMPTS):
        scheduler.handle(ActorPlaced(actor_id, LOAD_S * actor_id))
        decisions = scheduler.handle(Tick(LOAD_S * (actor_id + 1)))
        assert decisions[0] == StopActor(actor_id, ErrorKind.STUCK)
    assert FailUnit("u", ErrorKind.STUCK, attempts=0) in decisions
