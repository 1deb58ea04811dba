"""Share of numbers that are the gold (count_score in metrics.py of THUDM/LongBench@2e00731f)."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.metrics.longbench_scoring import best_over_answers
from evaluators.metrics.numbers_share import share_of_numbers
from evaluators.registry import register_metric


@register_metric("count")
def count(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `share_of_numbers` over the answers, 0 to 1."""
    return best_over_answers(lambda answer: share_of_numbers(prediction, answer), answers)
