"""`qa_f1` of the prediction's first line: what eval.py of THUDM/LongBench@2e00731f does for triviaqa."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.metrics.longbench_scoring import best_over_answers, first_line
from evaluators.metrics.qa_f1 import token_f1
from evaluators.registry import register_metric


@register_metric("qa_f1_first_line")
def qa_f1_first_line(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `token_f1` of the first line over the answers, 0 to 1."""
    line = first_line(prediction)
    return best_over_answers(lambda answer: token_f1(line, answer), answers)
