"""The letter in "The correct answer is (B)" (pred.py of LongBench v2, THUDM/LongBench@2e00731f); the first one counts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.metrics.stated import right, stated_parts
from evaluators.scoring import register_metric_of_parts

_IN_PARENTHESES = re.compile(r"The correct answer is \(([A-D])\)")
_BARE = re.compile(r"The correct answer is ([A-D])")


@register_metric_of_parts("stated_choice", right, is_mean=True)
def stated_choice(
    prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()
) -> dict[str, float]:
    """1 when the sentence names an answer's letter, asterisks taken out; a text without the sentence is wrong."""
    letter = _letter(prediction)
    is_right = letter is not None and any(letter == _letter(answer) for answer in answers)
    return stated_parts(is_right=is_right, is_answered=letter is not None)


def _letter(text: str) -> str | None:
    plain = text.replace("*", "")
    found = _IN_PARENTHESES.search(plain) or _BARE.search(plain)
    return None if found is None else found[1]
