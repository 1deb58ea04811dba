"""Which busy actors get their next unit before they are free, so that no device waits for the driver between two units.

Pure. Tied too early, the last units would leave actors to end far apart: so it depends on what is left for whoever is free
first, and on how fast the actors have been so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

RESERVE = 2.0
"""What is left afterwards keeps all actors busy at least so many times as long as the actor needs for both its units."""


def actors_with_next(
    waiting_costs: Sequence[float],
    running_cost_by_actor: Mapping[int, float],
    pace_by_actor: Mapping[int, float],
    num_actors: int,
) -> list[int]:
    """The actors for the first, the second … of the waiting units, as far as any should have them already.

    Args:
        waiting_costs: in the order in which units are given out.
        running_cost_by_actor: what busy actors work on that have nothing lying ready.
        pace_by_actor: cost per second of those that have finished something. Others, of ``num_actors`` in all, may be as
            fast as the fastest.
    """
    if not pace_by_actor:
        return []
    num_unknown = num_actors - len(pace_by_actor)
    pace_of_all = sum(pace_by_actor.values()) + num_unknown * max(pace_by_actor.values())
    # Whoever will need it first comes first.
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
        cost = waiting_costs[len(chosen)]
        both_s = running_s + cost / pace_by_actor[actor_id]
        if (left_cost - cost) / pace_of_all >= RESERVE * both_s:
            chosen.append(actor_id)
            left_cost -= cost
    return chosen
