"""A folder that results cannot be written to is refused where it is named, not after hours of work."""

from __future__ import annotations

import os
from pathlib import Path


def file_in_the_way(folder: Path) -> str | None:
    """A sentence about the file that stands where `folder`, or a folder it lies in, should be; None when none does."""
    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            kind = "a file" if place.exists() else "a link to nothing"
            return None if place.is_dir() else f"{place} is {kind}, not a folder; choose another output_dir"
    return None
