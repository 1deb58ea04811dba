"""Whether the first number is the answer (get_score_one_math_find of OpenBMB/InfiniteBench@88b3daa6 and of SCBench).

A minus sign is lost: "-7" is right for 7 and never for -7. What comes behind the point of a number is cut off for a whole
answer, as SCBench has it; InfiniteBench's own code ends with an error there. An answer with a point is compared as a float.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

from evaluators.metrics.best_answer import best_over_answers
from evaluators.scoring import register_metric

_NUMBER = re.compile(r"\d+\.\d+|\d+", re.ASCII)


@register_metric("first_number")
def first_number(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when the first number without its sign is an answer, "7" a whole number and "7.0" a float, otherwise 0."""
    found = _NUMBER.search(prediction)
    return best_over_answers(lambda answer: found is not None and _is_equal(found[0], answer), answers)


def _is_equal(number: str, answer: str) -> bool:
    with suppress(
        ValueError, OverflowError
    ):  # an answer that is no number, and more digits than Python reads
        return float(number) == float(answer) if "." in answer else int(float(number)) == int(answer)
    return False
