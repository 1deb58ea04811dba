"""Share of numbers that are the gold paragraph's (retrieval_score in metrics.py of THUDM/LongBench@2e00731f)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.metrics.longbench_scoring import best_over_answers
from evaluators.metrics.numbers_share import share_of_paragraphs
from evaluators.registry import register_metric

_GOLD = re.compile(r"Paragraph (\d+)")


@register_metric("retrieval")
def retrieval(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best share over the answers, 0 to 1; an answer reads "Paragraph 7", and one without a number scores 0."""
    return best_over_answers(lambda answer: share_of_paragraphs(prediction, answer, _GOLD), answers)
