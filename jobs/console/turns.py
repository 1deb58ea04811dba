"""Processes of one machine take turns at something short. A death ends a turn: the system lets go of its lock."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_POLL_S = 0.05


@contextlib.contextmanager
def turn(path: Path, limit_s: float) -> Iterator[bool]:
    """Wait until no other process has its turn at `path`, a file that is there for that alone and is gone afterwards.

    Yields False, and goes on all the same, where the turn did not come within `limit_s`, or where this disk or system has no
    such locks.

    Raises:
        OSError: the file cannot be made.
    """
    handle = _taken(path, time.monotonic() + limit_s)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # before the lock goes: the next one sees that its file is not this one any more
            os.close(handle)


def _taken(path: Path, deadline_s: float) -> int | None:
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, handle):
                return handle
        except BlockingIOError:
            pass
        except OSError:
            os.close(handle)
            return None
        os.close(handle)
        if time.monotonic() > deadline_s:
            return None
        time.sleep(_POLL_S)


def _is_still(path: Path, handle: int) -> bool:
    """Whether the open file is the one of that name: whoever had its turn before has taken its own away."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
