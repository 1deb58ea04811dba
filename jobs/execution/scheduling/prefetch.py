"""Which busy actors get their next unit before they are free, so that no device waits for the driver between two units.

Pure. Towards the end of a sweep no unit is given early: whichever actor is free first takes it, so that all end together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

RESERVE = 2.0
"""An actor gets a unit early only if what is left then keeps all actors busy so many times as long as it needs for both."""


def actors_with_next(
    waiting_costs: Sequence[float],
    running_cost_by_actor: Mapping[int, float],
    pace_by_actor: Mapping[int, float],
    num_actors: int,
) -> list[int]:
    """Ids of the actors that get the first, the second … of the waiting units early; no more than should.

    Args:
        waiting_costs: in the order in which units are given out.
        running_cost_by_actor: costs of what busy actors work on, of those that have no next unit yet.
        pace_by_actor: cost per second of those that have finished something.
        num_actors: all there may be.
    """
    if not pace_by_actor:
        return []
    # Of unknown pace, an actor counts as the fastest: too few units given early cost a moment, too many a late end.
    num_unknown = num_actors - len(pace_by_actor)
    pace_of_all = sum(pace_by_actor.values()) + num_unknown * max(pace_by_actor.values())
    # The whole unit counts as still to run, though part of it is done: nobody reports how far it is.
    # The actor that will be free first comes first.
    ahead = sorted(
        (cost / pace_by_actor[actor_id], actor_id)
        for actor_id, cost in running_cost_by_actor.items()
        if actor_id in pace_by_actor
    )
    chosen: list[int] = []
    left_cost = sum(waiting_costs)
    for running_s, actor_id in ahead:
        if len(chosen) == len(waiting_costs):
            break
        # Passed over, an actor leaves this unit to the next one in line, which may be faster.
        cost = waiting_costs[len(chosen)]
        both_s = running_s + cost / pace_by_actor[actor_id]
        if (left_cost - cost) / pace_of_all >= RESERVE * both_s:
            chosen.append(actor_id)
            left_cost -= cost
    return chosen
