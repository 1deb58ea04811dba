"""Hints for error messages: the known name, or the existing path, that is nearest to what the user wrote."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

_MAX_LISTED = 12  # a longer list hides the hint


def nearest_name_hint(name: str, known: Iterable[str]) -> str:
    """A sentence naming the known name nearest to `name`, or listing what is known."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    if not names:
        return "There is nothing of the kind."
    rest = ", …" if len(names) > _MAX_LISTED else ""
    return f"Known: {', '.join(names[:_MAX_LISTED])}{rest}."


def nearest_path_hint(path: Path) -> str:
    """The hint for a missing file or folder: its likely misspelling in the deepest folder that exists."""
    present, missing = path.resolve(), path.name
    while not present.exists():  # ends at the root at the latest
        present, missing = present.parent, present.name
    if not present.is_dir():
        return f"{present} is a file."
    names = [entry.name for entry in present.iterdir()]
    return f"In {present}: {nearest_name_hint(missing, names)}" if names else f"{present} is empty."
