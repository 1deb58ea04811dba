"""The error for a policy entry that cannot be understood, and its hint: of the names there are, the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VariantError(ValueError):
    """A policy entry that cannot be understood, or parameters the policy does not have."""


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" (did you mean 'x'?)"`` for the known name closest to ``name``, or ``""``; a lower ``cutoff`` (0–1) guesses more.

    Capitals count only between known names that differ in nothing else.
    """
    by_folded: dict[str, list[str]] = {}
    for it in known:
        by_folded.setdefault(it.casefold(), []).append(it)
    close = difflib.get_close_matches(str(name).casefold(), by_folded, n=1, cutoff=cutoff)
    if not close:
        return ""
    (best,) = difflib.get_close_matches(str(name), by_folded[close[0]], n=1, cutoff=0.0)
    return f" (did you mean {best!r}?)"
