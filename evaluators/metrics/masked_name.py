"""Whether a masked name was guessed (get_score_one_longdialogue_qa_eng of OpenBMB/InfiniteBench@88b3daa6).

Only the first of several names counts, and one of two words never does: words are compared. The authors changed it later.
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.metrics.retrieved_value import BLANKED
from evaluators.scoring import register_metric


@register_metric("masked_name")
def masked_name(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when the first answer is one of the prediction's words in capitals, otherwise 0."""
    return float(answers[0] in {word.upper() for word in prediction.translate(BLANKED).split()})
