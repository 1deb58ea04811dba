"""Whether an answer stands anywhere in the text (scbench/compute_scores.py of microsoft/MInference@fb56c917).

`substring_any_case` is SCBench's measure of its English questions, which elsewhere have token F1.
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.scoring import register_metric


@register_metric("substring")
def substring(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when an answer is a substring of the prediction, letter by letter, otherwise 0."""
    return float(any(answer in prediction for answer in answers))


@register_metric("substring_any_case")
def substring_any_case(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when an answer is a substring of the prediction, both in capitals, otherwise 0."""
    text = prediction.strip().upper()
    return float(any(answer.upper() in text for answer in answers))
