"""Which function is said to be faulty (get_score_one_code_debug of OpenBMB/InfiniteBench@88b3daa6).

Answers are the function's name and its option's letter. Only what follows the first known phrase is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.scoring import register_metric

_BLANKED = re.compile("[\n`'\"*-]|[Oo]ption")
_BLANKS = re.compile(" {2,}")
# "correct option is:" of the authors' list can never come after "is:".
_PREFIXES = ("answer is:", "is:", "answer:", "correct option is:")


@register_metric("code_choice")
def code_choice(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when the text begins with the letter and "." or ":", or letter or name follow a phrase, otherwise 0."""
    text = prediction.strip()
    if text[:2] in (f"{answers[-1]}.", f"{answers[-1]}:"):
        return 1.0
    text = _BLANKS.sub(" ", _BLANKED.sub(" ", text))
    for prefix in _PREFIXES:
        start = text.find(prefix)
        if start >= 0:
            return float(text[start + len(prefix) + 1 :].startswith(tuple(answers)))
    return 0.0
