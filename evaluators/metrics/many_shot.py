"""Which option a many-shot answer chooses: SCBench's own measure, and a strict one.

SCBench loops over the characters of a label that is one string (scbench/compute_scores.py of microsoft/MInference@fb56c917):
"I am not sure" is right where A is, and any parenthesis where "(A)" is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.metrics.best_answer import best_over_answers
from evaluators.scoring import register_metric

_CHOICE = re.compile(r"\(([A-Z])\)|\b([A-Z])\b")


@register_metric("many_shot_official")
def many_shot_official(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when any character of an answer stands in the prediction, both in capitals, otherwise 0."""
    text = prediction.strip().upper()
    return float(any(sign in text for answer in answers for sign in answer.upper()))


@register_metric("many_shot_strict")
def many_shot_strict(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when the first capital letter in parentheses or alone is the answer's, otherwise 0."""
    letter = _letter(prediction)
    return best_over_answers(lambda answer: letter is not None and letter == _letter(answer), answers)


def _letter(text: str) -> str | None:
    found = _CHOICE.search(text)
    return None if found is None else found[1] or found[2]
