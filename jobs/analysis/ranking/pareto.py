"""The Pareto front: the points that no other point beats in one number without losing in the other."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def pareto_front(points: Mapping[Key, tuple[float, float]]) -> tuple[Key, ...]:
    """Of key → (cost, loss), less being better in both, the keys that are not dominated; ascending in cost.

    A point is dominated by one that is no larger in both numbers and smaller in one. Equal points stay together. The front
    is of the numbers as they are: it says nothing of whether two of them are told apart.
    """
    front: list[Key] = []
    least = float("inf")  # loss of the points that cost less
    ordered = sorted(points, key=lambda key: points[key])
    for key in ordered:
        cost, loss = points[key]
        if loss < least or (front and points[front[-1]] == (cost, loss)):
            front.append(key)
            least = loss
    return tuple(front)
