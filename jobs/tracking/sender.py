"""A thread that sends the backlog to the server, so that the sweep never waits; an outage is logged once.

Knows neither MLflow nor rows. A batch that was not confirmed is sent again, after pauses that grow.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from jobs.tracking.backlog import Backlog, PointBatch

logger = logging.getLogger(__name__)

Send = Callable[[PointBatch], None]

_MIN_PAUSE_S = 2.0  # between deliveries: rows of units that end together go together
_MAX_PAUSE_S = 60.0


class Sender:
    """Delivers a backlog while the sweep runs. `lock` guards the backlog; whoever changes it holds it."""

    def __init__(self, backlog: Backlog, send: Send, where: str, min_pause_s: float = _MIN_PAUSE_S) -> None:
        self.lock = threading.Lock()
        self._backlog = backlog
        self._send = send
        self._where = where
        self._min_pause_s = min_pause_s
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self) -> None:
        """Start the thread, which delivers whenever it is woken."""
        self._thread.start()

    def wake(self) -> None:
        """Tell the thread that there is something to deliver."""
        self._woken.set()

    def stop(self, limit_s: float) -> bool:
        """End the thread after the call it is in. Returns whether it has ended within `limit_s`."""
        # In this order: woken first, the thread could go round once more and wait again.
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is not None:  # `join` raises on a thread that was never started
            self._thread.join(limit_s)
        return not self._thread.is_alive()

    def deliver(self, may_go_on: Callable[[], bool]) -> bool:
        """Send batches in the caller's thread until none is left (True) or `may_go_on` says no (False).

        Raises whatever `send` raises; the batch is then still the next.
        """
        while may_go_on():
            with self.lock:
                batch = self._backlog.next_batch()
            if batch is None:
                return True
            # Without the lock: a slow server must not stop the sweep from adding to the backlog.
            self._send(batch)
            with self.lock:
                self._backlog.confirm()
        return False

    def _run(self) -> None:
        num_failures = 0
        while not self._stopping.is_set():
            # Cleared before delivering: what is added meanwhile wakes the thread again, and nothing is forgotten.
            self._woken.wait()
            self._woken.clear()
            try:
                self.deliver(lambda: not self._stopping.is_set())
            except Exception as error:  # noqa: BLE001 - rows are on disk; a tracker stops no run
                num_failures += 1
                self._woken.set()  # what is left is tried again after the pause, whether or not new rows come
                if num_failures == 1:
                    logger.warning(
                        "tracking at %s failed (%s: %s); the run goes on, and what is missing is sent later",
                        self._where,
                        type(error).__name__,
                        error,
                    )
            else:
                if num_failures and not self._stopping.is_set():
                    logger.warning("tracking at %s works again; nothing is missing there", self._where)
                    num_failures = 0
            self._stopping.wait(pause_s(num_failures, self._min_pause_s))


def pause_s(num_failures: int, min_pause_s: float = _MIN_PAUSE_S) -> float:
    """The pause before the next delivery: doubled by every failure in a row, up to a minute."""
    doubled: float = min_pause_s * 2 ** min(num_failures, 16)
    return min(doubled, _MAX_PAUSE_S)
