"""SIGTERM, as Slurm, Kubernetes or `ray job stop` send it, ends a sweep like Ctrl-C: rows kept, exit code 130.

While a sweep runs, either is answered at once: what follows, units and Ray coming to an end, can take seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STOPPING = "stopping: finished rows are kept (again: at once)"
_told: list[bool] = []
"""One entry for each run that is to be told of: whether it has been."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt inside; the handler of before is back afterwards. Main thread only."""
    with _handled(signal.SIGTERM):
        yield


@contextmanager
def told_interrupts() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise KeyboardInterrupt inside, and the first of them says on standard error what happens now."""
    _told.append(False)
    try:
        # Whoever put us in the background has switched Ctrl-C off for us, and it stays so.
        is_heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        with _handled(signal.SIGTERM), _handled(signal.SIGINT, is_heard):
            yield
    finally:
        _told.pop()


@contextmanager
def _handled(number: int, is_wanted: bool = True) -> Iterator[None]:
    # In any other thread, `signal.signal` raises.
    if not is_wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        signal.signal(number, before)


def _interrupt(signal_number: int, frame: object) -> None:
    if _told and not _told[-1]:
        _told[-1] = True
        # Not print: the signal may have come in the middle of one, whose lock is then held. Standard error may be closed.
        with suppress(OSError, ValueError, AttributeError):
            os.write(sys.__stderr__.fileno(), f"\n{STOPPING}\n".encode())  # type: ignore[union-attr]
    raise KeyboardInterrupt
