"""Names that every MLflow server takes and that sort with what they belong to: `<what>/<benchmark>/<task>`.

Different names stay different: one that had to be changed carries a digest of what it was.
"""

from __future__ import annotations

import hashlib
import re

LOW, HIGH = "low", "high"
"""The ends of a 95 % interval stand under their mean: `score/longbench/qasper/low`."""

_MAX_CHARS = 250  # MLflow refuses more
_ROOM_FOR_ENDS = 10  # for "/high", or the number of a second trace
_MAX_FILE_CHARS = 60  # of any script: disks take 255 bytes
_DIGEST_DIGITS = 6
_ILLEGAL = re.compile(r"[^\w.\- ]")  # `:` is legal on some servers only, and `/` parts the segments


def metric_key(*names: str) -> str:
    """The key of `names`, each of which may have parts of its own ("longbench/qasper").

    What MLflow refuses (signs, empty or dotted segments, more than 250 characters) is replaced.
    """
    name = "/".join(names)
    key = "/".join(_legal(segment) for segment in name.split("/"))
    most = _MAX_CHARS - _ROOM_FOR_ENDS
    if key != name or len(key) > most:
        key = f"{key[: most - _DIGEST_DIGITS - 1].rstrip('/ ')}-{_digest(name)}"
    return key


def file_name(name: str) -> str:
    """A task's or figure's name as one that any disk takes and no other name shares: "longbench-qasper"."""
    safe = re.sub(r"[^\w.\-]", "-", name)[:_MAX_FILE_CHARS]
    is_plain = name.isascii() and "-" not in name and safe == name.replace("/", "-")
    return safe if is_plain else f"{safe}-{_digest(name)}"


def _legal(segment: str) -> str:
    """Letters and digits of any script stay; a segment must not be empty, `.` or `..`, nor begin or end in a space."""
    kept = _ILLEGAL.sub("_", segment).strip()
    return kept if kept.strip(".") else "_"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:_DIGEST_DIGITS]
