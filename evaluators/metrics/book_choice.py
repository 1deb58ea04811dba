"""Which option a text chooses (get_score_one_longbook_choice_eng of OpenBMB/InfiniteBench@88b3daa6, and SCBench).

Quirks, kept: a text that begins with A, B, C or D chooses by that letter ("Because" chooses B), and any piece of "ABCD", such
as "BCD", is a letter. Answers are the option's text and its letter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.scoring import register_metric

_BLANKED = str.maketrans(dict.fromkeys("\n\"'.,?!{}", " "))
_BLANKS = re.compile(" {2,}")
_PREFIXES = ("answer is:", "answer:", "answer is", "option is")
_LETTERS = "ABCD"


@register_metric("book_choice")
def book_choice(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when the first letter, the whole text, what follows "answer is" or the first lone letter is an answer's."""
    text = prediction.strip()
    if not text:
        return 0.0
    if text[0] in _LETTERS:
        return float(text[0] in answers)
    if text in answers:
        return 1.0
    text = _BLANKS.sub(" ", text.translate(_BLANKED))
    for prefix in _PREFIXES:
        start = text.find(prefix)
        if start >= 0:
            return float(text[start + len(prefix) + 1 :].startswith(tuple(answers)))
    letter = next((word for word in text.split() if word in _LETTERS), None)
    return float(letter in answers)
