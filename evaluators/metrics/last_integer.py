"""Whether the last word is the number that code returns (get_score_one_code_run of OpenBMB/InfiniteBench@88b3daa6).

Answers are whole numbers written out. Of a copy of the data whose column was made text the official code scores 0 for all.
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.metrics.best_answer import best_over_answers
from evaluators.scoring import register_metric

_BLANKED = str.maketrans(dict.fromkeys("\n.`'\":", " "))


@register_metric("last_integer")
def last_integer(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when the last word, stops and quotes blanked out, is an answer as a whole number, otherwise 0."""
    words = prediction.translate(_BLANKED).split()
    said = _integer(words[-1]) if words else None
    return best_over_answers(lambda answer: said is not None and said == _integer(answer), answers)


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
