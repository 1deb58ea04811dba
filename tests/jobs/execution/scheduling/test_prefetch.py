"""The next unit of a busy actor: it is there when the actor ends, costs no attempt, and delays no sweep."""

from __future__ import annotations

import heapq
import random
import statistics
from dataclasses import dataclass, field

import pytest

from jobs.execution.scheduling import prefetch
from jobs.execution.scheduling.events import (
    AcceptUnit,
    ActorDied,
    ActorReady,
    Assign,
    Begin,
    Decision,
    Event,
    FailUnit,
    Interrupted,
    Queue,
    StartActor,
    UnitFailed,
    UnitFinished,
)
from jobs.execution.scheduling.failure import ErrorKind
from jobs.execution.scheduling.prefetch import actors_with_next
from jobs.execution.scheduling.scheduler import Scheduler
from tests.fakes.schedulers import make_scheduler, unit_ids

MOST_DELAY = 1.05
"""Of a single sweep's end, relative: another order of units may fit better by chance. 1.012 in 900 worlds."""
NUM_MANY = 12


def busy_with_next(max_attempts: int = 3) -> Scheduler:
    """An actor that has finished u0 of `NUM_MANY` equal units in a second; it works on u1, and u2 is queued there."""
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


def test_a_busy_actor_has_the_next_unit_queued_and_goes_on_to_it() -> None:
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


def test_the_last_units_are_queued_at_no_actor() -> None:
    scheduler, now_s, rest = busy_with_next(), 3.0, []
    for unit_id in unit_ids(NUM_MANY)[1:]:
        decisions = scheduler.handle(UnitFinished(0, unit_id, now_s))
        now_s, rest = now_s + 1, [*rest, *(it.unit_id for it in decisions if isinstance(it, Assign))]
    assert scheduler.is_closed
    assert rest == unit_ids(NUM_MANY)[-4:], "two units take it twice as long as two more"


def test_a_unit_queued_at_an_actor_that_died_has_lost_no_attempt() -> None:
    scheduler = busy_with_next(max_attempts=1)
    assert scheduler.handle(ActorDied(0, ErrorKind.ACTOR_DIED, 3.0)) == (
        FailUnit("u1", ErrorKind.ACTOR_DIED, attempts=1),
        StartActor(1),
    )
    assert scheduler.unit_of(0) is None
    assert scheduler.handle(ActorReady(1, 4.0)) == (Assign(1, "u2", attempt=1),)


def test_a_queued_unit_may_end_before_its_beginning_was_reported() -> None:
    scheduler = busy_with_next()
    assert AcceptUnit("u2") in scheduler.handle(UnitFinished(0, "u2", 3.0))
    scheduler.check_integrity()
    assert AcceptUnit("u1") in scheduler.handle(UnitFinished(0, "u1", 3.0))
    scheduler.check_integrity()


def test_an_interrupt_leaves_queued_units_to_the_next_run() -> None:
    scheduler = busy_with_next()
    scheduler.handle(Interrupted(2.0))
    assert scheduler.handle(UnitFinished(0, "u1", 3.0)) == (AcceptUnit("u1"),)
    assert scheduler.handle(UnitFinished(0, "u2", 3.0)) == (AcceptUnit("u2"),), "unless it ends all the same"


def test_an_actor_of_unknown_pace_counts_as_the_fastest() -> None:
    costs, running, paces = [1.0] * 13, {0: 1.0, 1: 4.0, 2: 1.0}, {0: 1.0, 1: 2.0}
    assert actors_with_next(costs, running, paces, num_actors=2) == [0], (
        "12 are left for 3 a second: not twice 2.5 s"
    )
    assert actors_with_next(costs, running, paces, num_actors=3) == []
    assert actors_with_next(costs * 3, running, paces, num_actors=3) == [0, 1], "2 may be slow itself"
    assert actors_with_next(costs * 3, running, {}, num_actors=3) == []


@dataclass
class Clockwork:
    """Actors of given speeds, each ready at its time; between two units a device waits, unless the next one is queued."""

    seconds: dict[str, float]
    ready_at_s: list[float]
    speeds: list[float]
    wait_s: float
    events: list[tuple[float, int, Event]] = field(default_factory=list)
    queued: dict[int, str] = field(default_factory=dict)

    def end_s(self, costs: dict[str, float]) -> float:
        """When the last unit ends."""
        scheduler, now_s = make_scheduler(costs, len(self.speeds)), 0.0
        self.obey(scheduler.start(0.0), 0.0)
        while not scheduler.is_closed:
            now_s, _, event = heapq.heappop(self.events)
            if isinstance(event, UnitFinished) and event.actor_id in self.queued:
                self.begin(event.actor_id, self.queued.pop(event.actor_id), now_s)
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
                    self.queued[actor_id] = unit_id

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


def test_many_equal_units_end_sooner_with_the_next_one_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = dict.fromkeys(unit_ids(100), 1.0)
    ahead = end_s(costs, [0.0, 1.0], [1.0, 1.0])
    monkeypatch.setattr(prefetch, "RESERVE", float("inf"))
    assert ahead < end_s(costs, [0.0, 1.0], [1.0, 1.0]) - 40 * 0.05


@pytest.mark.parametrize("num_actors", [2, 4, 8])
def test_no_sweep_ends_later_for_queued_units(
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
