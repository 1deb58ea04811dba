"""Share of the references found (scripts/eval/synthetic/constants.py of NVIDIA/RULER@c3f5e3b4)."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.metrics.ruler_scoring import searched_text
from evaluators.registry import register_metric


@register_metric("string_match_all")
def string_match_all(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """Share, 0 to 1, of the answers that are substrings of the prediction, ignoring case."""
    text = searched_text(prediction)
    return sum(answer.lower() in text for answer in answers) / len(answers)
