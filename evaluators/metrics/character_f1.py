"""F1 of characters (qa_f1_score_zh of OpenBMB/InfiniteBench@88b3daa6, and SCBench); LongBench's compares words instead."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.metrics.best_answer import best_over_answers
from evaluators.metrics.qa_f1 import DELETE_PUNCTUATION_ZH, multiset_f1
from evaluators.scoring import register_metric


@register_metric("character_f1")
def character_f1(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best F1 of characters over the answers, 0 to 1; blanks and punctuation of both scripts do not count."""
    predicted = _characters(prediction)
    return best_over_answers(lambda answer: multiset_f1(predicted, _characters(answer)), answers)


def _characters(text: str) -> str:
    return "".join(text.lower().translate(DELETE_PUNCTUATION_ZH).split())
