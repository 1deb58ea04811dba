"""Every unit ends exactly once, by `AcceptUnit` or by `FailUnit`, whatever events arrive in whatever order.

Pure: events with `now_s` go in, decisions come out; no clock, no Ray. The first result of a unit counts, also
when it comes from an actor presumed dead; every later one is dropped. Only an abort or an interrupt leaves
units without an end, and after either nothing is started any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jobs.execution.scheduling.actors import Actors
from jobs.execution.scheduling.books import Actor, ActorState, SchedulerError, Unit, UnitState, check_books
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
from jobs.execution.scheduling.failure import (
    MAY_BE_THE_UNITS_FAULT,
    ErrorKind,
    FailureDecision,
    FailurePolicy,
)
from jobs.execution.scheduling.prefetch import actors_with_next


@dataclass(slots=True)
class Scheduler:
    """Books on units and actors, and the rules by which they move.

    - `cost_tokens` maps each unit id to its cost. The costliest waiting unit is given out first, equal ones in their order;
      a busy actor may get its next unit early (`prefetch`).
    - At most `max_actors` are alive at once, and none is started without work. While none is placed, an actor that is not
      placed within `placement_timeout_s` is withdrawn; when none is left, the run aborts with NO_RESOURCES.
    - After `failure.max_attempts` actors in a row died before they were ready, no more are started while none is ready;
      when none is left, the waiting units are failed. Machines that are taken away (PREEMPTED) are counted by themselves.
    - While others are ready, a place whose actors keep dying stays empty, and no lost unit is tried again in a place where
      an actor died. An actor that has not reported for longer than its timeout is stopped (`actors`).
    """

    cost_tokens: dict[str, float]
    max_actors: int
    failure: FailurePolicy
    placement_timeout_s: float
    _units: dict[str, Unit] = field(init=False)
    _actors: Actors = field(init=False)
    _is_closed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if self.max_actors < 1:
            raise ValueError(f"max_actors must be at least 1, got {self.max_actors}")
        by_cost = sorted(self.cost_tokens, key=lambda unit_id: -self.cost_tokens[unit_id])
        self._units = {unit_id: Unit(unit_id, rank) for rank, unit_id in enumerate(by_cost)}
        self._actors = Actors(self.max_actors, self.failure, self.placement_timeout_s)

    def start(self, now_s: float) -> tuple[Decision, ...]:
        """The first decisions: actors to start, or `Done` when there is nothing to do. Call once, first."""
        return tuple(self._advance(now_s))

    def handle(self, event: Event) -> tuple[Decision, ...]:
        """Enter one event in the books and return what to do, in order.

        Safe with duplicates and with events of dead or unknown actors. After the end only accepts and drops.

        Raises:
            SchedulerError: a unit that was never planned.
        """
        # The list runs the generator to its end: the books must be right before the next decision is taken from them.
        decisions = list(self._enter(event))
        if not self._is_closed:
            decisions.extend(self._advance(event.now_s))
        return tuple(decisions)

    def unit_of(self, actor_id: int) -> str | None:
        """The unit that the actor works on, as far as is known; None for one that is idle, dead or unknown."""
        actor = self._actors.by_id.get(actor_id)
        return None if actor is None else actor.unit_id

    @property
    def is_closed(self) -> bool:
        """Whether the run is over: done, aborted or interrupted."""
        return self._is_closed

    def check_integrity(self) -> None:
        """Raise `SchedulerError` if units and actors contradict each other; changes nothing."""
        check_books(self._units, self._actors.by_id)
        if not self._is_closed and self._in_state(UnitState.WAITING) and not self._actors.alive:
            raise SchedulerError("units wait, but no actor is alive or starting")

    def _enter(self, event: Event) -> Iterator[Decision]:
        match event:
            case ActorPlaced(actor_id=actor_id, now_s=now_s):
                self._actors.mark_placed(actor_id, now_s)
            case ActorReady(actor_id=actor_id, now_s=now_s):
                self._actors.mark_ready(actor_id, now_s)
            case ActorDied(actor_id=actor_id, kind=kind, now_s=now_s):
                yield from self._record_death(actor_id, kind, now_s)
            case UnitFinished(actor_id=actor_id, unit_id=unit_id, now_s=now_s, is_whole=is_whole):
                # In this order: `_free` forgets the unit that the pace is counted by, and makes it wait; `_accept` ends it.
                self._count_pace(actor_id, unit_id, now_s)
                yield from self._free(actor_id, unit_id, now_s)
                yield from self._accept(self._unit(unit_id), is_whole)
            case UnitFailed(actor_id=actor_id, unit_id=unit_id, kind=kind, now_s=now_s):
                # Asked before `_free` forgets it: what an actor presumed dead reports costs the unit no attempt.
                is_current = self._unit(unit_id).actor_id == actor_id
                yield from self._free(actor_id, unit_id, now_s)
                if is_current:
                    yield from self._lose(self._units[unit_id], kind)
            case Interrupted():
                self._is_closed = True
            case Tick():
                pass

    def _advance(self, now_s: float) -> Iterator[Decision]:
        """Stop late and stuck actors, hand out units, start actors, and notice the end."""
        for actor_id in self._actors.withdraw_late(now_s):
            yield StopActor(actor_id, ErrorKind.NO_RESOURCES)
        for actor_id in self._actors.stuck(self.cost_tokens, now_s):
            # Named before the death is recorded: a dead actor has no unit.
            yield StopActor(actor_id, ErrorKind.STUCK, self.unit_of(actor_id))
            yield from self._record_death(actor_id, ErrorKind.STUCK, now_s)
        waiting = sorted(self._in_state(UnitState.WAITING), key=lambda unit: unit.rank)
        for actor in [it for it in self._actors.alive if it.state is ActorState.IDLE]:
            unit = next((unit for unit in waiting if self._may_take(actor, unit)), None)
            if unit is not None:
                waiting.remove(unit)
                yield self._assign(actor, unit, now_s)
        yield from self._queue_ahead(waiting)
        num_unfinished = len(self._units) - len(self._in_state(UnitState.ENDED))
        for actor_id in self._actors.start_missing(num_unfinished, now_s):
            yield StartActor(actor_id)
        if not self._actors.alive and self._actors.why_no_more is not None:
            yield from self._give_up(self._actors.why_no_more)
        if not self._is_closed and len(self._in_state(UnitState.ENDED)) == len(self._units):
            self._is_closed = True
            yield Done()

    def _queue_ahead(self, waiting: Sequence[Unit]) -> Iterator[Queue]:
        """Give the busy actors that `actors_with_next` chooses their next units."""
        alive = self._actors.alive
        with_room = {
            it.actor_id: self.cost_tokens[it.unit_id]
            for it in alive
            if it.unit_id is not None and it.next_id is None
        }
        paces = {it.actor_id: it.pace for it in alive if it.pace is not None}
        costs = [self.cost_tokens[unit.unit_id] for unit in waiting]
        chosen = actors_with_next(costs, with_room, paces, self.max_actors)
        # The nth actor was chosen for the nth unit; where it may not take that one, the unit goes on waiting.
        for actor_id, unit in zip(chosen, waiting, strict=False):
            if self._may_take(self._actors.by_id[actor_id], unit):
                unit.state, unit.actor_id = UnitState.QUEUED, actor_id
                self._actors.by_id[actor_id].next_id = unit.unit_id
                yield Queue(actor_id, unit.unit_id, self._leaves_out_user_policies(unit))

    def _may_take(self, actor: Actor, unit: Unit) -> bool:
        """A lost unit is tried again in a sound place only, as long as an actor in a sound place is ready."""
        is_new = unit.attempts == 0
        return (
            is_new or self._actors.is_sound(actor) or not any(map(self._actors.is_sound, self._actors.ready))
        )

    def _leaves_out_user_policies(self, unit: Unit) -> bool:
        """Whether this is the last attempt and the unit may have killed an actor in every one before."""
        # `> 0`: where there is one attempt in all, nothing has been lost yet and all policies are run.
        return len(unit.lost_at) == unit.own_attempts == self.failure.max_attempts - 1 > 0

    def _assign(self, actor: Actor, unit: Unit, now_s: float) -> Assign:
        without_user_policies = self._leaves_out_user_policies(unit)  # before `_begin` counts the attempt
        self._begin(actor, unit, now_s)
        return Assign(actor.actor_id, unit.unit_id, unit.attempts, without_user_policies)

    def _begin(self, actor: Actor, unit: Unit, now_s: float) -> None:
        unit.state, unit.actor_id, unit.attempts = UnitState.RUNNING, actor.actor_id, unit.attempts + 1
        actor.state, actor.unit_id, actor.since_s = ActorState.BUSY, unit.unit_id, now_s

    def _count_pace(self, actor_id: int, unit_id: str, now_s: float) -> None:
        """Add the unit to what the actor has done."""
        actor = self._actors.by_id.get(actor_id)
        # A unit that was queued a moment ago has no beginning to count from.
        if actor is not None and actor.unit_id == unit_id:
            actor.done_cost += self.cost_tokens[unit_id]
            actor.done_s += now_s - actor.since_s

    def _accept(self, unit: Unit, is_whole: bool) -> Iterator[Decision]:
        if unit.state is UnitState.ENDED:
            yield DropResult(unit.unit_id)
            return
        self._end(unit)
        if not is_whole:  # it ran without users' policies: they killed the actors, and the places are sound
            self._actors.places.clear(unit.lost_at)
        yield AcceptUnit(unit.unit_id)

    def _record_death(self, actor_id: int, kind: ErrorKind, now_s: float) -> Iterator[Decision]:
        actor = self._actors.record_death(actor_id, kind, now_s)
        if actor is None:
            return
        if actor.next_id is not None:  # the queued unit had not begun: it has lost no attempt
            self._put_back(self._units[actor.next_id], actor_id)
        if self._actors.count_death(actor, kind) is FailureDecision.RAISE and not self._is_closed:
            yield from self._abort(kind)
        if actor.unit_id is not None and self._units[actor.unit_id].actor_id == actor_id:
            if kind in MAY_BE_THE_UNITS_FAULT:
                self._units[actor.unit_id].lost_at.append(actor.place)
            yield from self._lose(self._units[actor.unit_id], kind)

    def _lose(self, unit: Unit, kind: ErrorKind) -> Iterator[Decision]:
        """Put a unit that brought no rows back, or end it; after the run's end it just stays unfinished."""
        unit.state, unit.actor_id = UnitState.WAITING, None
        if self._is_closed:
            return
        match self.failure.decide(kind, unit.count_loss(kind)):
            case FailureDecision.GIVE_UP:
                yield self._fail(unit, kind)
            case FailureDecision.RAISE:
                yield from self._abort(kind)
            case FailureDecision.RETRY:
                pass

    def _give_up(self, kind: ErrorKind) -> Iterator[Decision]:
        """End what waits: no actor is left and none will come."""
        waiting = self._in_state(UnitState.WAITING)
        if waiting and self.failure.decide(kind, self.failure.max_attempts) is FailureDecision.RAISE:
            yield from self._abort(kind)
            return
        for unit in waiting:
            yield self._fail(unit, kind)

    def _fail(self, unit: Unit, kind: ErrorKind) -> FailUnit:
        self._end(unit)
        self._actors.places.clear(unit.lost_at)
        return FailUnit(unit.unit_id, kind, unit.attempts, unit.preemptions)

    def _abort(self, kind: ErrorKind) -> Iterator[Decision]:
        self._is_closed = True
        yield Abort(kind)

    def _end(self, unit: Unit) -> None:
        # Another actor that runs it stays busy with it until it reports; that result is dropped.
        unit.state, unit.actor_id = UnitState.ENDED, None

    def _free(self, actor_id: int, unit_id: str, now_s: float) -> Iterator[Decision]:
        """Enter that the actor works on this unit no more, but on the one queued there, if there is one."""
        actor = self._actors.by_id.get(actor_id)
        if actor is None or unit_id not in (actor.unit_id, actor.next_id):
            return
        unit = self._units[unit_id]
        self._put_back(unit, actor_id)
        self._actors.count_answer(actor)
        # Answers that come together have no order: the queued unit may end before the one in front of it.
        if unit_id == actor.next_id:
            actor.next_id, unit.attempts = None, unit.attempts + 1
            return
        next_id = actor.next_id
        actor.state, actor.unit_id, actor.next_id = ActorState.IDLE, None, None
        if next_id is None:
            return
        following = self._units[next_id]
        if following.actor_id != actor_id:  # another actor's late report has ended it: this one works in vain
            actor.state, actor.unit_id, actor.since_s = ActorState.BUSY, next_id, now_s
            return
        self._begin(actor, following, now_s)
        if not self._is_closed:
            yield Begin(actor_id, next_id, following.attempts)

    def _put_back(self, unit: Unit, actor_id: int) -> None:
        """Let the unit wait again if this actor holds it."""
        if unit.actor_id == actor_id:
            unit.state, unit.actor_id = UnitState.WAITING, None

    def _unit(self, unit_id: str) -> Unit:
        if unit_id not in self._units:
            raise SchedulerError(f"an event names unit {unit_id!r}, which was never planned")
        return self._units[unit_id]

    def _in_state(self, state: UnitState) -> list[Unit]:
        return [unit for unit in self._units.values() if unit.state is state]
