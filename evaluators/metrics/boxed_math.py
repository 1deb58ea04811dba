r"""Whether the last box is the gold expression (MATH, arXiv:2103.03874): as text once spelling is evened out.

Evened out is what the authors' own scorer evens out: spaces, \left and \right, dfrac, degrees, units, per cent, `\frac12`,
`.5`, a leading `x=`, and `1/2` for `\frac{1}{2}`; grouping commas of whole numbers too. No algebra is done.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.metrics.boxed import last_boxed
from evaluators.metrics.stated import right, stated_parts
from evaluators.scoring import register_metric_of_parts

MOST_CHARS = 2000
"""Of a boxed expression that is compared; none of MATH's golds has more than a tenth of them."""
_DROPPED = (
    r"\!", r"\,", r"\;", r"\:", r"\ ", r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$", "$", r"\%", "%", "{,}",
)  # fmt: skip
_SPELLINGS = ((r"\tfrac", r"\frac"), (r"\dfrac", r"\frac"), (r"\cfrac", r"\frac"), ("\\\\", "\\"))
_UNIT = re.compile(r"\\(?:text|mbox|mathrm)\{\s[^{}]*\}(?:\^\{?[23]\}?)?$")
_WORDS = re.compile(r"\\(?:text|mbox|mathrm|textbf)\{([^{}]*)\}")
_ONE_ARGUMENT = re.compile(r"\\sqrt([^{\[\\])")
_SHORT_FRACTION = re.compile(r"\\frac(?:(\d)(\d)|(\d)(\{[^{}]*\})|(\{[^{}]*\})(\d))")
_SLASHED = re.compile(r"(-?)(\d+)/(\d+)")
_NAMED = re.compile(r"[a-zA-Z]\w?=(.+)", re.DOTALL)
_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_BARE_POINT = re.compile(r"(?<!\d)\.(?=\d)")
_TRAILING_ZEROS = re.compile(r"(-?\d+)\.0+")


@register_metric_of_parts("boxed_math", right, is_mean=True)
def boxed_math(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> dict[str, float]:
    r"""1 when the last \boxed{} says what an answer, boxed there or alone, says, spelling evened out."""
    said = boxed_text(prediction)
    is_right = said is not None and any(said == gold_text(answer) for answer in answers)
    return stated_parts(is_right=is_right, is_answered=said is not None)


def boxed_text(text: str) -> str | None:
    """The last box, evened out; None without one, or for one that is too long to be an answer."""
    found = last_boxed(text)
    return None if found is None or len(found) > MOST_CHARS else evened(found)


def gold_text(answer: str) -> str:
    """An answer, which may be a solution with a box or the expression alone, evened out."""
    found = last_boxed(answer)
    return evened((answer if found is None else found)[:MOST_CHARS])


def evened(expression: str) -> str:
    """One spelling of an expression of LaTeX."""
    text = expression.strip().rstrip(".").replace("\n", "")
    for spelling, ours in _SPELLINGS:
        text = text.replace(spelling, ours)
    text = _UNIT.sub("", text)
    for dropped in _DROPPED:
        text = text.replace(dropped, "")
    text = _WORDS.sub(r"\1", text).replace(" ", "")
    if (named := _NAMED.fullmatch(text)) is not None:
        text = named[1]
    text = _BARE_POINT.sub("0.", text)
    text = _ONE_ARGUMENT.sub(r"\\sqrt{\1}", text)
    text = _SHORT_FRACTION.sub(_long_fraction, text)
    if (slashed := _SLASHED.fullmatch(text)) is not None:
        text = rf"{slashed[1]}\frac{{{slashed[2]}}}{{{slashed[3]}}}"
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    whole = _TRAILING_ZEROS.fullmatch(text)
    return whole[1] if whole else text


def _long_fraction(found: re.Match[str]) -> str:
    over, under = (part for part in found.groups() if part is not None)
    return rf"\frac{{{over.strip('{}')}}}{{{under.strip('{}')}}}"
