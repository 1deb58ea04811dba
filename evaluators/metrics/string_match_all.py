"""Share of the references found (scripts/eval/synthetic/constants.py of NVIDIA/RULER@c3f5e3b4)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.registry import register_metric

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f]")


@register_metric("string_match_all")
def string_match_all(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """Share, 0 to 1, of the answers that are substrings of the prediction, ignoring case.

    Control characters become newlines first, as in RULER's evaluation; kvpress deletes them.
    """
    text = _CONTROL_CHARACTERS.sub("\n", prediction).strip().lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)
