"""Whether the first letter chosen is the gold one (accuracy of ZeroSCROLLS' quality, arXiv:2305.14196)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.metrics.best_answer import best_over_answers
from evaluators.scoring import register_metric

_LETTER = re.compile(r"\b[A-D]\b")


def chosen_letter(text: str) -> str | None:
    """The first capital A, B, C or D that is a word of its own; "A story …" chooses A, as the authors have it."""
    found = _LETTER.search(text)
    return found[0] if found else None


@register_metric("multiple_choice")
def multiple_choice(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when prediction and any answer choose the same letter, otherwise 0; choosing none is never right."""
    letter = chosen_letter(prediction)
    return best_over_answers(lambda answer: letter is not None and letter == chosen_letter(answer), answers)
