"""Right or not, and whether anything was stated: compression makes some answers end before they say anything."""

from __future__ import annotations

from collections.abc import Mapping

RIGHT, ANSWERED = "right", "answered"


def stated_parts(*, is_right: bool, is_answered: bool) -> dict[str, float]:
    """Both as 0 or 1."""
    return {RIGHT: float(is_right), ANSWERED: float(is_answered)}


def right(parts: Mapping[str, float]) -> float:
    """The score: whether it is right."""
    return parts[RIGHT]
