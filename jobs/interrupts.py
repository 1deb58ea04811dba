"""Ctrl-C and a scheduler's SIGTERM end a sweep alike: rows kept, partial table, exit code 130."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_interrupt() -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM raise KeyboardInterrupt inside; what they did before is back afterwards.

    What is yielded raises it again once a signal has come: where other people's code runs for long, an exception that comes
    from nowhere can get lost in it. Outside the main thread, where Python knows no signals, nothing of this happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    has_come = threading.Event()

    def interrupt(signal_number: int, frame: object) -> None:
        has_come.set()
        raise KeyboardInterrupt

    def raise_if_it_has_come() -> None:
        if has_come.is_set():
            raise KeyboardInterrupt

    # A shell's background jobs ignore Ctrl-C, and are meant to.
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield raise_if_it_has_come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
