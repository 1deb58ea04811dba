"""Share of the gold among the class names found (metrics.py, eval.py of THUDM/LongBench@2e00731f)."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.metrics.best_answer import best_over_answers, first_line
from evaluators.scoring import register_metric


def class_share(prediction: str, answer: str, all_classes: Sequence[str]) -> float:
    """1 / number of class names found in the prediction when the gold is among them, otherwise 0.

    Names that are part of the gold's name do not count, but for the authors' quirk below.
    """
    found = [name for name in all_classes if name in prediction]
    # The authors shrink the list they iterate over, so the name after a removed one is never looked at.
    # Published scores contain this; a clean filter would be another metric.
    for name in found:
        if name in answer and name != answer:
            found.remove(name)
    return 1 / len(found) if answer in found else 0.0


@register_metric("classification", uses_classes=True)
def classification(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `class_share` over the answers, 0 to 1.

    Only the prediction's first line counts: both tasks with this metric (trec, lsht) are cut so by eval.py.
    """
    line = first_line(prediction)
    return best_over_answers(lambda answer: class_share(line, answer, all_classes), answers)
