"""Whether the first run of digits is the answer (get_score_one_passkey of OpenBMB/InfiniteBench@88b3daa6)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.scoring import register_metric

_DIGITS = re.compile(r"[0-9]+")


@register_metric("first_integer")
def first_integer(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when the first run of the digits 0 to 9 is an answer, digit by digit, otherwise 0."""
    found = _DIGITS.search(prediction)
    return float(found is not None and found[0] in answers)
