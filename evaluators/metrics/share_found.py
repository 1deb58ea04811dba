"""The share of names that are found (string_match_all of scbench/compute_scores.py, microsoft/MInference@fb56c917)."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.scoring import register_metric


@register_metric("share_found")
def share_found(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """Share of the answers that are substrings of the prediction, ignoring case, rounded to two decimals an item."""
    text = prediction.lower()
    return round(sum(answer.lower() in text for answer in answers) / len(answers), 2)
