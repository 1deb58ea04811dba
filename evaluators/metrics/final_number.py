"""Whether a worked solution ends at the gold number (GSM8K, arXiv:2110.14168): exact as decimals, of any length of answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from evaluators.metrics.boxed import last_boxed
from evaluators.metrics.stated import right, stated_parts
from evaluators.scoring import register_metric_of_parts

_MARK = "####"
# A sign belongs to a number unless it stands behind another, as in "16-3"; digits may be grouped by commas.
_NUMBER = re.compile(
    r"(?<![\w.)\]])-?\$?\d[\d,]*(?:\.\d+)?|(?<=[-+*/=x])\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?"
)
_MOST_DIGITS = 100  # of a number that is compared; a model may write digits without end


@register_metric_of_parts("final_number", right, is_mean=True)
def final_number(
    prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()
) -> dict[str, float]:
    r"""1 when the number after "####", else in the last \boxed{}, else the last one of all, equals a gold one."""
    said = stated_number(prediction)
    is_right = said is not None and any(said == stated_number(answer) for answer in answers)
    return stated_parts(is_right=is_right, is_answered=said is not None)


def stated_number(text: str) -> Decimal | None:
    """The number that a solution states as its answer; None without one."""
    _, mark, behind = text.rpartition(_MARK)
    if mark and (found := _NUMBER.search(behind)):
        return _decimal(found[0])
    for part in (last_boxed(text), text):
        if part is not None and (numbers := _NUMBER.findall(part)):
            return _decimal(numbers[-1])
    return None


def _decimal(number: str) -> Decimal | None:
    digits = number.replace(",", "").replace("$", "")
    return Decimal(digits) if len(digits) <= _MOST_DIGITS else None
