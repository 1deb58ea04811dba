"""The error for a policy entry that cannot be understood, and its hint: of the names there are, the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VariantError(ValueError):
    """A policy entry that cannot be understood, or parameters the policy does not have."""


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" (did you mean 'x'?)"`` for the known name closest to ``name``, or ``""``; a lower ``cutoff`` (0–1) guesses more."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]!r}?)" if close else ""
