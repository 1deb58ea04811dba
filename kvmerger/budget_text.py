"""Budgets as people write them: in settings, in names of variants, and as kvpress says them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction

from kvmerger.budget import (
    AskedBudget,
    BudgetError,
    BytesLike,
    BytesShare,
    KeptRatio,
    LikeVariant,
    SlotCount,
)

_BYTES, _LIKE = "bytes:", "like:"
_PERCENT = 100


def kept_ratio_from_compression_ratio(compression_ratio: float) -> KeptRatio:
    """Convert kvpress's ``compression_ratio`` (the fraction *removed*, in [0, 1)) into the fraction kept."""
    if isinstance(compression_ratio, bool) or not isinstance(compression_ratio, int | float):
        likely = _likely(compression_ratio)
        raise BudgetError(f"compression_ratio must be a number in [0, 1), got {compression_ratio!r}{likely}")
    if not 0 <= compression_ratio < 1:
        raise BudgetError(
            f"compression_ratio is the fraction removed and must be in [0, 1), got {compression_ratio}; "
            f"to keep a fraction of the cache write `budget: <fraction kept>`"
        )
    return KeptRatio(float(1 - Fraction(str(compression_ratio))))


def parse_budget(value: object) -> AskedBudget:
    """Read a budget as people write it: ``0.5`` (fraction kept), ``512`` (slots per KV head), ``{like: label}``, and in bytes
    ``{bytes: 0.2}`` or ``{bytes: {like: label}}``. Those of labels, ``bytes:0.2`` and ``like:label``, are read too, and a
    number as text: ``5e-1`` is none to YAML.

    Raises:
        BudgetError: for anything else, with the value and what would be right.
    """
    # bool before int, of which it is a subclass; 1 is a slot, 1.0 is everything.
    match value:
        case KeptRatio() | SlotCount() | LikeVariant() | BytesShare() | BytesLike():
            return value
        case bool():
            pass
        case int() if value >= 1:
            return SlotCount(value)
        case float() if 0 < value <= 1:
            return KeptRatio(value)
        case str():
            return budget_of_text(value)
        case {"like": str(label)} if isinstance(value, Mapping) and len(value) == 1:
            return LikeVariant(label)
        case {"bytes": of_bytes} if isinstance(value, Mapping) and len(value) == 1:
            return _in_bytes(of_bytes)
    raise _none_of(value)


def budget_of_text(text: str) -> AskedBudget:
    """Read a budget as it stands behind the ``@`` of a label: ``0.5``, ``512``, ``bytes:0.2``, ``like:…``, ``bytes:like:…``.

    Raises:
        BudgetError: for anything else.
    """
    is_bytes, rest = text.startswith(_BYTES), text.removeprefix(_BYTES)
    if label := rest.removeprefix(_LIKE) if rest.startswith(_LIKE) else "":
        return BytesLike(label) if is_bytes else LikeVariant(label)
    number = _number(rest)
    if isinstance(number, str):
        raise _none_of(text)
    return parse_budget({"bytes": number} if is_bytes else number)


def _none_of(value: object) -> BudgetError:
    return BudgetError(
        f"budget {value!r}{_likely(value)} is none of: a kept fraction in (0, 1] such as 0.5, a whole number of slots per "
        f"KV head such as 512, {{like: <label of another variant>}}, or {{bytes: 0.2}} for a fraction of the full cache's "
        f"bytes"
    )


def _likely(value: object) -> str:
    """``" (50% is 0.5)"`` for a percentage or a fraction that is none as a budget, otherwise ``""``."""
    match = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:%|/\s*(\d+))\s*", value) if isinstance(value, str) else None
    )
    if match is None:
        return ""
    number, of = Fraction(match[1]), int(match[2] or _PERCENT)
    return (
        f" ({value.strip()} is {float(number / of):g})" if 0 < number < of and isinstance(value, str) else ""
    )


def _in_bytes(value: object) -> BytesShare | BytesLike:
    match value:
        case float() if 0 < value <= 1:
            return BytesShare(value)
        case {"like": str(label)} if isinstance(value, Mapping) and len(value) == 1:
            return BytesLike(label)
    if type(value) is int and value == 1:
        # As elsewhere 1 is a number of something, and 1.0 a share; one byte is nothing to give.
        raise BudgetError("budget {bytes: 1} is one byte; write {bytes: 1.0} for all bytes of the full cache")
    raise BudgetError(
        f"budget {{bytes: {value!r}}}{_likely(value)} is none of: a fraction of the full cache's bytes in (0, 1] such as "
        f"{{bytes: 0.2}}, or {{bytes: {{like: <label of another variant>}}}}"
    )


def _number(text: str) -> float | str:
    """The number that ``text`` is, whole without a point; the text itself where it is none."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
