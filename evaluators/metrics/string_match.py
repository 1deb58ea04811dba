"""Whether references are found: all of them, or any (scripts/eval/synthetic/constants.py of NVIDIA/RULER@c3f5e3b4)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.scoring import register_metric

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f]")


@register_metric("string_match_all")
def string_match_all(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """Share, 0 to 1, of the answers that are substrings of the prediction, ignoring case."""
    text = searched_text(prediction)
    return sum(answer.lower() in text for answer in answers) / len(answers)


@register_metric("string_match_part")
def string_match_part(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when any answer is a substring of the prediction, ignoring case, otherwise 0."""
    text = searched_text(prediction)
    return float(any(answer.lower() in text for answer in answers))


def searched_text(prediction: str) -> str:
    """The prediction in lower case; control characters become newlines, as evaluate.py has it (kvpress deletes them)."""
    return _CONTROL_CHARACTERS.sub("\n", prediction).strip().lower()
