"""Memory as people write it: `24GiB`, `80 GB`. Binary and decimal units differ by 7 % at GB, so the unit is never guessed."""

from __future__ import annotations

import re
from fractions import Fraction

_PREFIXES = "KMGT"
_SIZE = re.compile(rf"(\d+(?:\.\d+)?)\s*([{_PREFIXES}]?)(i?)B", re.IGNORECASE)


class ByteSizeError(ValueError):
    """A text that is no amount of memory."""


def parse_bytes(text: str) -> int:
    """Whole bytes of `24GiB` (2^30), `24GB` (10^9) and the like, with K, M, G, T or none; rounded down.

    Raises:
        ByteSizeError: no number, no unit, or nothing at all.
    """
    found = _SIZE.fullmatch(text.strip())
    number, prefix, binary = found.groups() if found else ("0", "", "")
    step = 1024 if binary else 1000
    size = int(Fraction(number) * step ** (_PREFIXES.index(prefix.upper()) + 1 if prefix else 0))
    if size < 1 or (binary and not prefix):
        raise ByteSizeError(
            f"{text!r} is no amount of memory; write a number and its unit, as 24GiB (of 1024) or 24GB (of 1000)"
        )
    return size
