"""`rouge` of the prediction's first line: what eval.py of THUDM/LongBench@2e00731f does for samsum."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.metrics.longbench_scoring import best_over_answers, first_line
from evaluators.metrics.rouge import rouge_l
from evaluators.registry import register_metric


@register_metric("rouge_first_line")
def rouge_first_line(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `rouge_l` of the first line over the answers, 0 to 1."""
    line = first_line(prediction)
    return best_over_answers(lambda answer: rouge_l(line, answer), answers)
