"""Disks in memory that can be full or read-only; they need root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class Untried(Exception):
    """This machine cannot be disturbed in this way; says why."""


class Mounted:
    """A disk of its own in memory at `place`, for as long as the block lasts."""

    def __init__(self, place: Path, options: str) -> None:
        self._place, self._options = place, options

    def __enter__(self) -> None:
        if os.geteuid() or not mount(
            "-t", "tmpfs", "-o", self._options, "tmpfs", str(self._place), is_sure=False
        ):
            raise Untried("no disk can be mounted here")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self._place)], check=False)


def mount(*words: str, is_sure: bool = True) -> bool:
    """Call `mount`; whether it did it. Raises Untried where it had to."""
    done = subprocess.run(["mount", *words], check=False, capture_output=True)
    if is_sure and done.returncode:
        raise Untried(f"mount {' '.join(words)}: {done.stderr.decode().strip()}")
    return done.returncode == 0
