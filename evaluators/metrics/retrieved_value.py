"""Whether a value is among the words (get_score_one_kv_retrieval of OpenBMB/InfiniteBench@88b3daa6)."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.scoring import register_metric

BLANKED = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))


@register_metric("retrieved_value")
def retrieved_value(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when an answer is a whole word, stops, quotes and braces blanked out, otherwise 0."""
    words = set(prediction.translate(BLANKED).split())
    return float(any(answer in words for answer in answers))
