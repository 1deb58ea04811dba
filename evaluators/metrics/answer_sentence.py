"""The number in the first "The answer is …" (strict match of gsm8k_cot in EleutherAI/lm-evaluation-harness@01fe40a1).

The worked examples end in that sentence, and a model that goes on after it asks itself another question: its last number is
that one's answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.metrics.final_number import stated_number
from evaluators.metrics.stated import right, stated_parts
from evaluators.scoring import register_metric_of_parts

_SENTENCE = re.compile(r"The answer is \$?(-?\$?[0-9][0-9.,]*)")


@register_metric_of_parts("answer_sentence", right, is_mean=True)
def answer_sentence(
    prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()
) -> dict[str, float]:
    """1 when the number in the first "The answer is …" is the one that a gold solution states, otherwise 0."""
    found = _SENTENCE.search(prediction)
    said = None if found is None else stated_number(found[1])
    is_right = said is not None and any(said == _gold(answer) for answer in answers)
    return stated_parts(is_right=is_right, is_answered=said is not None)


def _gold(answer: str) -> object:
    found = _SENTENCE.search(answer)
    return stated_number(answer if found is None else found[1])
