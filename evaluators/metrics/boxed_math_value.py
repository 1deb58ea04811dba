r"""Whether the last box has the gold's value: as `boxed_math`, and numbers compared exactly as fractions.

`\frac{1}{2}`, `1/2` and `0.5` are equal, and so are lists of such in the same brackets. Roots and letters are compared
as text: no algebra, so nothing wrong is taken for right, and some right answers are missed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from evaluators.metrics.boxed_math import boxed_text, gold_text
from evaluators.metrics.stated import right, stated_parts
from evaluators.scoring import register_metric_of_parts

_FRACTION = re.compile(r"([+-]?)\\frac\{([+-]?\d{1,50})\}\{(\d{1,50})\}")
_MIXED = re.compile(r"([+-]?)(\d{1,50})\\frac\{(\d{1,50})\}\{(\d{1,50})\}")
_PLAIN = re.compile(r"[+-]?\d{1,50}(?:\.\d{1,50})?(?:/\d{1,50})?")
_OPEN, _CLOSE = "([{", ")]}"


@register_metric_of_parts("boxed_math_value", right, is_mean=True)
def boxed_math_value(
    prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()
) -> dict[str, float]:
    r"""1 when the last \boxed{} has the text or, number by number, the exact value of an answer, spelling evened out."""
    said = boxed_text(prediction)
    is_right = said is not None and any(_parts(said) == _parts(gold_text(answer)) for answer in answers)
    return stated_parts(is_right=is_right, is_answered=said is not None)


def _parts(text: str) -> tuple[Fraction | str, ...]:
    """The values of a list's parts, with its brackets; of anything else its own."""
    pieces, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        depth += (sign in _OPEN) - (sign in _CLOSE)
        if sign == "," and depth <= 1:
            pieces.append(text[start:place])
            start = place + 1
    pieces.append(text[start:])
    if len(pieces) == 1:
        return (_value(text),)
    first, last = pieces[0], pieces[-1]
    opening, closing = first[:1] if first[:1] in "([" else "", last[-1:] if last[-1:] in ")]" else ""
    pieces[0] = first.removeprefix(opening)
    pieces[-1] = last.removesuffix(closing)
    return (opening, *map(_value, pieces), closing)


def _value(text: str) -> Fraction | str:
    try:
        if found := _FRACTION.fullmatch(text):
            return Fraction(int(found[2]), int(found[3])) * (-1 if found[1] == "-" else 1)
        if found := _MIXED.fullmatch(text):
            value = int(found[2]) + Fraction(int(found[3]), int(found[4]))
            return -value if found[1] == "-" else value
        return Fraction(text) if _PLAIN.fullmatch(text) else text
    except (ZeroDivisionError, ValueError):  # 1/0, and a point before a slash
        return text
