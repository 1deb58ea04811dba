"""Paths as printed for people, who can paste them into the shell they were printed in."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def shown(path: Path) -> str:
    """`path` relative to the current folder when it lies inside, otherwise as it is."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def python() -> str:
    """The path of the Python that is running."""
    # Not `python`: where the environment is not activated, that is another one.
    return shown(Path(sys.executable))


def file_in_the_way(folder: Path) -> str | None:
    """A sentence about the file that stands where `folder`, or a folder it lies in, should be; None when none does."""
    for place in (folder, *folder.parents):
        # Unlike `exists`, also true of a link to nothing, where no folder can be made.
        if os.path.lexists(place):
            kind = "a file" if place.exists() else "a link to nothing"
            return None if place.is_dir() else f"{place} is {kind}, not a folder; choose another output_dir"
    return None
