"""Paths as a person would type them: what is printed can be pasted into the shell it was printed in."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def shown(path: Path) -> str:
    """`path` relative to the current folder when it lies inside, otherwise as it is."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def python() -> str:
    """The Python that is running: a newcomer has not activated its environment, and plain `python` may be another."""
    return shown(Path(sys.executable))


def file_in_the_way(folder: Path) -> str | None:
    """A sentence about the file that stands where `folder`, or a folder it lies in, should be; None when none does."""
    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            kind = "a file" if place.exists() else "a link to nothing"
            return None if place.is_dir() else f"{place} is {kind}, not a folder; choose another output_dir"
    return None
