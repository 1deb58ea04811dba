"""The front holds exactly the points that nothing dominates, held against the definition."""

import random

from jobs.analysis.ranking.pareto import pareto_front


def dominated(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether `other` is nowhere worse than `one` and somewhere better."""
    return other[0] <= one[0] and other[1] <= one[1] and other != one


def test_the_front_is_what_no_point_dominates_in_ascending_cost(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        # Few different numbers, so that ties of one number and of both come up.
        points = {
            index: (float(rng.randrange(5)), float(rng.randrange(5))) for index in range(rng.randrange(12))
        }
        slow = {key for key in points if not any(dominated(points[key], it) for it in points.values())}
        found = pareto_front(points)
        assert set(found) == slow and len(found) == len(slow)
        assert [points[key] for key in found] == sorted(points[key] for key in found)


def test_no_point_is_no_front() -> None:
    assert pareto_front({}) == ()
