"""Paths as a person would type them: what is printed can be pasted into the shell it was printed in."""

from __future__ import annotations

import sys
from pathlib import Path


def shown(path: Path) -> str:
    """`path` relative to the current folder when it lies inside, otherwise as it is."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def python() -> str:
    """The Python that is running: a newcomer has not activated its environment, and plain `python` may be another."""
    return shown(Path(sys.executable))
