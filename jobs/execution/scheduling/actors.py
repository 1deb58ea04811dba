"""Actors from their start to their death: when one is late, stuck, or not worth another, and why no more are started.

Pure; knows units by their ids and costs only. What becomes of a dead actor's unit is the scheduler's business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from jobs.execution.scheduling.books import Actor, ActorState
from jobs.execution.scheduling.failure import ErrorKind, FailureDecision, FailurePolicy

NEVER_S = float("-inf")
_S_PER_H = 3600.0
LOAD_S = 6 * _S_PER_H
"""For weights that come over a slow line."""
UNKNOWN_S = 6 * _S_PER_H
"""For a unit while nobody has finished one."""
LEAST_S = _S_PER_H
TIMES = 20.0
"""As long as the slowest actor would take by its pace so far."""


class Actors:
    """All actors there ever were, by id, and the places of those that are alive."""

    def __init__(self, max_actors: int, failure: FailurePolicy, placement_timeout_s: float) -> None:
        self.by_id: dict[int, Actor] = {}
        self.places = Places(max_actors, failure.max_attempts, placement_timeout_s)
        self.why_no_more: ErrorKind | None = None
        """While no actor is ready, no other is started for this reason."""
        self._max_actors = max_actors
        self._failure = failure
        self._placement_timeout_s = placement_timeout_s
        self._placed_at_s = NEVER_S  # when an actor was last seen to have a place
        self._was_ready = False  # so the model can be loaded
        self._start_failures = 0  # in a row

    @property
    def alive(self) -> list[Actor]:
        """Those that may do something yet."""
        return [actor for actor in self.by_id.values() if actor.state is not ActorState.DEAD]

    @property
    def ready(self) -> list[Actor]:
        """Those whose model is loaded."""
        return [actor for actor in self.by_id.values() if actor.is_ready]

    def is_sound(self, actor: Actor) -> bool:
        """Whether no actor came to nothing in its place, as far as no unit was to blame."""
        return self.places.is_sound(actor.place)

    def mark_placed(self, actor_id: int, now_s: float) -> None:
        """It has a process on some machine."""
        self._move(actor_id, {ActorState.STARTING}, ActorState.LOADING, now_s)

    def mark_ready(self, actor_id: int, now_s: float) -> None:
        """Its model is loaded."""
        if self._move(actor_id, {ActorState.STARTING, ActorState.LOADING}, ActorState.IDLE, now_s):
            self._start_failures, self.why_no_more, self._was_ready = 0, None, True

    def start_missing(self, num_unfinished: int, now_s: float) -> Iterator[int]:
        """Enter new actors where another may be of use; their ids."""
        are_others_ready = bool(self.ready)
        if self.why_no_more is not None and not are_others_ready:
            return
        for _ in range(min(self._max_actors, num_unfinished) - len(self.alive)):
            taken = {actor.place for actor in self.alive}
            place = self.places.free(taken, now_s, are_others_ready=are_others_ready)
            if place is None:
                return
            actor = Actor(len(self.by_id), place, now_s)
            self.by_id[actor.actor_id] = actor
            yield actor.actor_id

    def withdraw_late(self, now_s: float) -> Iterator[int]:
        """Those that nobody has placed in time; while others have a place, they may wait for theirs as long as that lasts."""
        alive = self.alive
        if any(actor.state is not ActorState.STARTING for actor in alive):
            self._placed_at_s = now_s
            return
        for actor in alive:
            if now_s - max(actor.since_s, self._placed_at_s) >= self._placement_timeout_s:
                self.why_no_more = ErrorKind.NO_RESOURCES
                actor.state = ActorState.DEAD
                self.places.leave(actor.place, now_s, is_failure=False)
                yield actor.actor_id

    def stuck(self, cost_tokens: Mapping[str, float], now_s: float) -> list[int]:
        """Those that have said nothing for much too long; nothing is entered."""
        paces = [actor.pace for actor in self.alive if actor.pace is not None]
        return [
            actor.actor_id
            for actor in self.alive
            if now_s - actor.since_s >= _timeout_s(actor, cost_tokens, paces)
        ]

    def record_death(self, actor_id: int, kind: ErrorKind, now_s: float) -> Actor | None:
        """As it was when it died, or None if it was dead or never there."""
        actor = self.by_id.get(actor_id)
        if actor is None or actor.state is ActorState.DEAD:
            return None
        self.by_id[actor_id] = Actor(actor_id, actor.place, now_s, ActorState.DEAD)
        # Where a node has died, the next actor will be on another.
        is_failure = actor.num_answered == 0 and kind is not ErrorKind.NODE_DIED
        self.places.leave(actor.place, now_s, is_failure=is_failure)
        return actor

    def count_death(self, dead: Actor, kind: ErrorKind) -> FailureDecision:
        """What its death means for other actors: only RAISE ends the run."""
        if dead.is_ready:
            if not self.ready:  # the place of this one could hold a model
                self._start_failures, self.why_no_more = 0, None
            return FailureDecision.RETRY
        self._start_failures += 1
        decision = self._failure.decide(kind, self._start_failures, has_worked=self._was_ready)
        if decision is FailureDecision.RAISE and any(it.state is ActorState.LOADING for it in self.alive):
            decision = FailureDecision.GIVE_UP  # they will show whether it is this place or the model
        if decision is FailureDecision.GIVE_UP:
            self.why_no_more = kind
        return decision

    def count_answer(self, actor: Actor) -> None:
        """It has answered a unit: something comes of it and its place."""
        actor.num_answered += 1
        self.places.record_success(actor.place)

    def _move(self, actor_id: int, sources: set[ActorState], target: ActorState, now_s: float) -> bool:
        actor = self.by_id.get(actor_id)
        if actor is None or actor.state not in sources:
            return False
        actor.state, actor.since_s = target, now_s
        return True


def _timeout_s(actor: Actor, cost_tokens: Mapping[str, float], paces: Collection[float]) -> float:
    if actor.unit_id is not None:
        return unit_timeout_s(cost_tokens[actor.unit_id], paces)
    return LOAD_S if actor.state is ActorState.LOADING else float("inf")


@dataclass(slots=True)
class Place:
    """One place. `num_failures`: actors in a row that died here before they finished a unit, where no unit was to blame."""

    num_failures: int = 0
    left_at_s: float = NEVER_S


class Places:
    """As many as there may be actors at once, counted from 0."""

    def __init__(self, count: int, max_failures: int, pause_s: float) -> None:
        """After ``max_failures`` actors came to nothing in one, it gets another only every ``pause_s``."""
        self._places = [Place() for _ in range(count)]
        self._max_failures = max_failures
        self._pause_s = pause_s

    def free(self, taken: Collection[int], now_s: float, *, are_others_ready: bool) -> int | None:
        """Where the next actor should go, the place with the fewest deaths; any is better than none while nobody is ready."""
        free = [
            (place.num_failures, index)
            for index, place in enumerate(self._places)
            if index not in taken and (not are_others_ready or self._is_promising(place, now_s))
        ]
        return min(free)[1] if free else None

    def is_sound(self, index: int) -> bool:
        """Whether no death counts against it."""
        return self._places[index].num_failures == 0

    def leave(self, index: int, now_s: float, *, is_failure: bool) -> None:
        """Its actor is gone, `is_failure`: before it had finished a unit."""
        place = self._places[index]
        place.left_at_s = now_s
        place.num_failures += is_failure

    def record_success(self, index: int) -> None:
        """Its actor has finished a unit: the place is sound."""
        self._places[index].num_failures = 0

    def clear(self, indices: Iterable[int]) -> None:
        """So many deaths here were a unit's fault."""
        for index in indices:
            self._places[index].num_failures = max(0, self._places[index].num_failures - 1)

    def _is_promising(self, place: Place, now_s: float) -> bool:
        return place.num_failures < self._max_failures or now_s - place.left_at_s >= self._pause_s


def unit_timeout_s(cost: float, paces: Collection[float]) -> float:
    """Seconds that a unit of this cost may take, with what actors have done per second so far."""
    return max(LEAST_S, TIMES * cost / min(paces)) if paces else UNKNOWN_S
