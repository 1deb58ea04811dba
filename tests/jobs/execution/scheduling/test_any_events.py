"""Each unit ends exactly once and the books stay right, in worlds that misbehave and under arbitrary events."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.execution.scheduling.events import (
    AcceptUnit,
    ActorDied,
    ActorPlaced,
    ActorReady,
    Assign,
    Decision,
    DropResult,
    Event,
    Interrupted,
    Queue,
    StartActor,
    StopActor,
    Tick,
    UnitFailed,
    UnitFinished,
)
from jobs.execution.scheduling.failure import ErrorKind
from tests.fakes.schedulers import Ledger, make_scheduler, unit_ids


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
                choices += [ActorDied(actor_id, ErrorKind.PREEMPTED, now_s)]
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
