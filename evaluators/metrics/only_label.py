"""Whether of all labels only the gold one is named (babilong/metrics.py of booydar/babilong@7a6efee2).

Quirks, kept: only what comes before the first full stop counts, and labels are found inside other words. Those that the
question names, which the authors never count, are no classes of an item.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.scoring import register_metric

# The authors' further cut at "Question" can never happen: the text is in small letters by then.
_END = re.compile(r"\.|<context>|<example>")


@register_metric("only_label", uses_classes=True)
def only_label(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 when the beginning of the text holds an answer and no other class, ignoring case, otherwise 0."""
    text = _END.split(prediction.lower(), maxsplit=1)[0]
    named = {label.lower() for label in all_classes if label.lower() in text}
    return float(len(named) == 1 and bool(named & {answer.lower() for answer in answers}))
