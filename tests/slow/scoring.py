"""Metrics as their definitions read, whatever that costs: pairs one by one, and the authors' own pattern."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence


def first_percentage(text: str) -> str | None:
    """The authors' pattern: cubic in a run of digits."""
    found = re.search(r"(\d+\.?\d*)%", text)
    return found[1] if found else None


def order_concordance(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """All pairs of the gold, one by one; the last place of an id counts."""
    if sorted(predicted) != sorted(gold) or not gold:
        return 0.0
    place = {number: index for index, number in enumerate(predicted)}
    pairs = [(place[one], place[other]) for one, other in itertools.combinations(gold, 2)]
    return sum((a < b) + 0.5 * (a == b) for a, b in pairs) / len(pairs) if pairs else 1.0


def common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Longest common subsequence by the table of the textbooks, a row at a time."""
    above = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for column, candidate in enumerate(other):
            row.append(above[column] + 1 if word == candidate else max(above[column + 1], row[column]))
        above = row
    return above[-1]
