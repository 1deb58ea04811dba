"""Actors from start to death: when one is late or stuck, where the next one goes, and why no more are started.

Pure; knows units by their ids and costs only. What becomes of a dead actor's unit is the scheduler's business.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from jobs.execution.scheduling.books import Actor, ActorState
from jobs.execution.scheduling.failure import (
    OF_THE_NODE,
    OF_THE_PLACE,
    ErrorKind,
    FailureDecision,
    FailurePolicy,
)

NEVER_S = float("-inf")
_S_PER_H = 3600.0
# Timeouts only tell a hung process from a slow one, and stopping a slow one loses hours of work: so they are generous.
LOAD_S = 6 * _S_PER_H
"""For loading a model: weights may come over a slow line."""
UNKNOWN_S = 6 * _S_PER_H
"""For a unit while no actor has finished one, so that no pace is known."""
LEAST_S = _S_PER_H
"""For any unit, however short."""
TIMES = 20.0
"""A unit may take so many times what the slowest actor would need at its pace so far."""


@dataclass(slots=True)
class Place:
    """Room for one actor at a time; `left_at_s` is when the last one was gone.

    `num_failures` counts the actors in a row that died here before they finished a unit, where no unit was to blame.
    No actor is started any more in a place that `is_closed`.
    """

    num_failures: int = 0
    left_at_s: float = NEVER_S
    is_closed: bool = False


class Places:
    """As many places as there may be actors at once, numbered from 0.

    A place stands for a device: Ray keeps no list of bad GPUs and gives the one that a dead actor has left to the next.
    """

    def __init__(self, count: int, max_failures: int, pause_s: float) -> None:
        """After `max_failures` failures in a row, a place gets another actor only every `pause_s`."""
        self._places = [Place() for _ in range(count)]
        self._max_failures = max_failures
        self._pause_s = pause_s

    def free(self, taken: Collection[int], now_s: float, *, are_others_ready: bool) -> int | None:
        """The place for the next actor: of those not `taken`, the one with the fewest failures; None if there is none.

        Places that failed too often are left out, unless no other actor is ready: then any place is better than none.
        """
        free = [
            (place.num_failures, index)
            for index, place in enumerate(self._places)
            if index not in taken
            and not place.is_closed
            and (not are_others_ready or self._is_promising(place, now_s))
        ]
        return min(free)[1] if free else None

    def is_sound(self, index: int) -> bool:
        """Whether no failure counts against the place."""
        return self._places[index].num_failures == 0

    def leave(self, index: int, now_s: float, *, is_failure: bool) -> None:
        """The place's actor is gone; `is_failure`: it had not finished a unit."""
        place = self._places[index]
        place.left_at_s = now_s
        place.num_failures += is_failure

    def close(self, index: int) -> None:
        """Start no actor there any more."""
        self._places[index].is_closed = True

    def record_success(self, index: int) -> None:
        """The place's actor has finished a unit: the place is sound."""
        self._places[index].num_failures = 0

    def clear(self, indices: Iterable[int]) -> None:
        """Take back a failure of each place, once for each time that it is listed: a unit was to blame."""
        for index in indices:
            # A success in between may have set it to 0 already.
            self._places[index].num_failures = max(0, self._places[index].num_failures - 1)

    def _is_promising(self, place: Place, now_s: float) -> bool:
        return place.num_failures < self._max_failures or now_s - place.left_at_s >= self._pause_s


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
        self._was_ready = False  # whether any ever was: then the model can be loaded
        self._start_failures = 0  # deaths in a row of actors that never were ready, preempted ones aside
        self._start_preemptions = 0  # of those that never were ready, likewise

    @property
    def alive(self) -> list[Actor]:
        """Those that are not dead: starting, loading, idle or busy."""
        return [actor for actor in self.by_id.values() if actor.state is not ActorState.DEAD]

    @property
    def ready(self) -> list[Actor]:
        """Those whose model is loaded."""
        return [actor for actor in self.by_id.values() if actor.is_ready]

    def is_sound(self, actor: Actor) -> bool:
        """Whether no failure counts against the actor's place."""
        return self.places.is_sound(actor.place)

    def mark_placed(self, actor_id: int, now_s: float) -> None:
        """It has a process on some machine."""
        self._move(actor_id, {ActorState.STARTING}, ActorState.LOADING, now_s)

    def mark_ready(self, actor_id: int, now_s: float) -> None:
        """Its model is loaded."""
        # From STARTING too: nothing promises that the answer to `place` is seen before the one to `load`.
        if self._move(actor_id, {ActorState.STARTING, ActorState.LOADING}, ActorState.IDLE, now_s):
            self._forget_failed_starts()
            self._was_ready = True

    def start_missing(self, num_unfinished: int, now_s: float) -> Iterator[int]:
        """Enter new actors while units are left for them and places are free; yields their ids."""
        are_others_ready = bool(self.ready)
        if self.why_no_more is not None and not are_others_ready:
            return
        for _ in range(min(self._max_actors, num_unfinished) - len(self.alive)):
            # Read anew each time: the actor entered last has taken a place.
            taken = {actor.place for actor in self.alive}
            place = self.places.free(taken, now_s, are_others_ready=are_others_ready)
            if place is None:
                return
            # Ids are never used again, so that a late report of a dead actor is known as such.
            actor = Actor(len(self.by_id), place, now_s)
            self.by_id[actor.actor_id] = actor
            yield actor.actor_id

    def withdraw_late(self, now_s: float) -> Iterator[int]:
        """Mark as dead the actors that were not placed in time; yields their ids.

        While another actor has a place, none is late: on a full cluster the others wait until there is room.
        """
        alive = self.alive
        if any(actor.state is not ActorState.STARTING for actor in alive):
            self._placed_at_s = now_s
            return
        for actor in alive:
            # Counted from the last moment that anyone had a place: an actor that waited for that one gets its full time.
            if now_s - max(actor.since_s, self._placed_at_s) >= self._placement_timeout_s:
                self.why_no_more = ErrorKind.NO_RESOURCES
                actor.state = ActorState.DEAD
                self.places.leave(actor.place, now_s, is_failure=False)
                yield actor.actor_id

    def stuck(self, cost_tokens: Mapping[str, float], now_s: float) -> list[int]:
        """Ids of the actors that have not reported for longer than their timeout; changes nothing."""
        paces = [actor.pace for actor in self.alive if actor.pace is not None]
        return [
            actor.actor_id
            for actor in self.alive
            if now_s - actor.since_s >= _timeout_s(actor, cost_tokens, paces)
        ]

    def record_death(self, actor_id: int, kind: ErrorKind, now_s: float) -> Actor | None:
        """Mark the actor as dead; returns it as it was alive, or None if it was dead or never there."""
        actor = self.by_id.get(actor_id)
        if actor is None or actor.state is ActorState.DEAD:
            return None
        # A new value, since the caller needs the old one with the units it held.
        self.by_id[actor_id] = Actor(actor_id, actor.place, now_s, ActorState.DEAD)
        is_failure = actor.num_answered == 0 and kind not in OF_THE_NODE
        self.places.leave(actor.place, now_s, is_failure=is_failure)
        return actor

    def count_death(self, dead: Actor, kind: ErrorKind) -> FailureDecision:
        """What its death means for other actors: only RAISE ends the run."""
        if dead.is_ready:
            if not self.ready:  # this one could load the model: others may be started again
                self._forget_failed_starts()
            return FailureDecision.RETRY
        if kind in OF_THE_PLACE:
            self.places.close(dead.place)
        attempt = self._count_failed_start(kind)
        decision = self._failure.decide(kind, attempt, has_worked=self._was_ready)
        if decision is FailureDecision.RAISE and any(it.state is ActorState.LOADING for it in self.alive):
            # Those that load will show whether it is this place or the model.
            decision = FailureDecision.GIVE_UP
        if decision is FailureDecision.GIVE_UP:
            self.why_no_more = kind
        return decision

    def count_answer(self, actor: Actor) -> None:
        """It has answered a unit, so its place is sound."""
        actor.num_answered += 1
        self.places.record_success(actor.place)

    def _forget_failed_starts(self) -> None:
        self._start_failures, self._start_preemptions, self.why_no_more = 0, 0, None

    def _count_failed_start(self, kind: ErrorKind) -> int:
        """Enter that an actor died before it was ready; returns the attempt's number in the kind's own budget."""
        if kind is not ErrorKind.PREEMPTED:
            self._start_failures += 1
            return self._start_failures
        self._start_preemptions += 1
        # A zone that is taken back takes all machines at once: that is one bad moment, not many.
        return math.ceil(self._start_preemptions / self._max_actors)

    def _move(self, actor_id: int, sources: set[ActorState], target: ActorState, now_s: float) -> bool:
        """Change the actor's state if it is in one of `sources`; returns whether it was."""
        actor = self.by_id.get(actor_id)
        if actor is None or actor.state not in sources:
            return False
        actor.state, actor.since_s = target, now_s
        return True


def unit_timeout_s(cost: float, paces: Collection[float]) -> float:
    """Seconds that a unit of this cost may take; `paces` are the costs per second of the actors so far."""
    return max(LEAST_S, TIMES * cost / min(paces)) if paces else UNKNOWN_S


def _timeout_s(actor: Actor, cost_tokens: Mapping[str, float], paces: Collection[float]) -> float:
    """Seconds without a report after which the actor counts as stuck."""
    if actor.unit_id is not None:
        return unit_timeout_s(cost_tokens[actor.unit_id], paces)
    # An idle actor owes no report, and one that is not placed has a timeout of its own.
    return LOAD_S if actor.state is ActorState.LOADING else float("inf")
