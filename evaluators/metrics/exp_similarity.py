"""Closeness of two percentages (exponential similarity of ZeroSCROLLS' space_digest, arXiv:2305.14196)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.metrics.best_answer import best_over_answers
from evaluators.scoring import register_metric

# The authors' is (\d+\.?\d*)%. Its match never begins behind a digit; where that is said, digits are read once and not
# from each of them on, which took the cube of their number.
_PERCENTAGE = re.compile(r"(?<!\d)(\d+(?:\.\d*)?)%")
_HALVING_POINTS = 10  # so many percentage points away, the score is half


def first_percentage(text: str) -> float | None:
    """The first number with a percent sign behind it, in percent; None when there is none."""
    found = _PERCENTAGE.search(text)
    return float(found[1]) if found else None


def percentage_similarity(one: float | None, other: float | None) -> float:
    """0.5 ** (distance / 10 points); 0 when either is missing."""
    if one is None or other is None:
        return 0.0
    # Equal ones first: a number of hundreds of digits is read as infinity, and inf - inf is NaN.
    return 1.0 if one == other else 0.5 ** (abs(one - other) / _HALVING_POINTS)


@register_metric("exp_similarity")
def exp_similarity(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `percentage_similarity` of the first percentages over the answers, 0 to 1."""
    predicted = first_percentage(prediction)
    return best_over_answers(
        lambda answer: percentage_similarity(predicted, first_percentage(answer)), answers
    )
