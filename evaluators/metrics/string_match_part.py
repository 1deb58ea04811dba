"""Whether any reference is found (scripts/eval/synthetic/constants.py of NVIDIA/RULER@c3f5e3b4)."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.metrics.ruler_scoring import searched_text
from evaluators.registry import register_metric


@register_metric("string_match_part")
def string_match_part(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when any answer is a substring of the prediction, ignoring case, otherwise 0."""
    text = searched_text(prediction)
    return float(any(answer.lower() in text for answer in answers))
