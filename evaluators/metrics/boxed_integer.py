r"""Whether the last box holds the gold whole number (AIME: 0 to 999; leading zeros, `n=` and degrees do not count)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.metrics.boxed_math import boxed_text, gold_text
from evaluators.metrics.stated import right, stated_parts
from evaluators.scoring import register_metric_of_parts

_WRAPPING = re.compile(r"\\(?:textbf|text|mathbf|mathrm|mbox)|[{}()]")
_INTEGER = re.compile(r"([+-]?)0*(\d{1,30})(?:\.0*)?")


@register_metric_of_parts("boxed_integer", right, is_mean=True)
def boxed_integer(
    prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()
) -> dict[str, float]:
    r"""1 when the last \boxed{} of the prediction holds the whole number of an answer, boxed there or alone."""
    said = _integer(boxed_text(prediction))
    is_right = said is not None and any(said == _integer(gold_text(it)) for it in answers)
    return stated_parts(is_right=is_right, is_answered=said is not None)


def _integer(text: str | None) -> int | None:
    found = None if text is None else _INTEGER.fullmatch(_WRAPPING.sub("", text).removesuffix("."))
    return None if found is None else int(found[1] + found[2])
