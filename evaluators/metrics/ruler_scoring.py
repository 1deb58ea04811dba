"""RULER looks for answers in a text without control characters (scripts/eval/evaluate.py of NVIDIA/RULER@c3f5e3b4)."""

from __future__ import annotations

import re

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f]")


def searched_text(prediction: str) -> str:
    """The prediction in lower case; control characters become newlines (kvpress deletes them)."""
    return _CONTROL_CHARACTERS.sub("\n", prediction).strip().lower()
