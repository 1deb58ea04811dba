"""The sweep never waits for a server: slow or dead, it costs one warning, and everything arrives once it is back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from jobs.tracking.backlog import Backlog, PointBatch
from jobs.tracking.metrics import Readings
from jobs.tracking.sender import Sender, pause_s

QUICK_S = 0.01
LIMIT_S = 10.0


def eventually(is_so: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + LIMIT_S
    while not is_so() and time.monotonic() < deadline_s:
        time.sleep(QUICK_S)
    return is_so()


class Server:
    """Takes batches, after `is_open` is set, unless it is down."""

    def __init__(self) -> None:
        self.taken: list[PointBatch] = []
        self.num_calls = 0
        self.is_down = False
        self.is_open = threading.Event()
        self.is_open.set()

    def take(self, batch: PointBatch) -> None:
        self.num_calls += 1
        self.is_open.wait(LIMIT_S)
        if self.is_down:
            raise ConnectionError("nobody listens")
        self.taken.append(batch)


def readings(value: float) -> Readings:
    return Readings({"x": value}, int(value), 0)


def started(server: Server) -> tuple[Backlog, Sender]:
    backlog = Backlog({})
    sender = Sender(backlog, server.take, "http://here", min_pause_s=QUICK_S)
    sender.start()
    return backlog, sender


def want(backlog: Backlog, sender: Sender, value: float) -> None:
    with sender.lock:
        backlog.want("a", readings(value))
    sender.wake()


def test_a_server_that_hangs_holds_nobody_up_and_gets_the_newest_numbers_when_it_goes_on() -> None:
    server = Server()
    server.is_open.clear()
    backlog, sender = started(server)
    want(backlog, sender, 1.0)
    assert eventually(lambda: server.num_calls == 1)
    for value in range(2, 100):
        want(backlog, sender, float(value))  # returns while the first call still hangs
    assert server.num_calls == 1
    server.is_open.set()
    assert eventually(lambda: [it.points[0].value for it in server.taken] == [1.0, 99.0])
    assert sender.stop(LIMIT_S)


def test_an_outage_is_told_once_with_its_end_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.is_down = True
    backlog, sender = started(server)
    with caplog.at_level(logging.WARNING, logger="jobs.tracking.sender"):
        want(backlog, sender, 1.0)
        assert eventually(lambda: server.num_calls >= 3)  # it tries again by itself
        want(backlog, sender, 2.0)
        server.is_down = False
        assert eventually(lambda: len(caplog.messages) == 2)
    assert [it.points[0].value for it in server.taken] == [1.0, 2.0]
    assert "nobody listens" in caplog.messages[0] and "works again" in caplog.messages[1]
    assert sender.stop(LIMIT_S)


def test_stopping_leaves_what_a_dead_server_did_not_take_to_whoever_delivers_next() -> None:
    server = Server()
    server.is_down = True
    backlog, sender = started(server)
    want(backlog, sender, 1.0)
    assert eventually(lambda: server.num_calls >= 1)
    assert sender.stop(LIMIT_S)
    server.is_down = False
    assert sender.deliver(lambda: True)
    assert [it.points[0].value for it in server.taken] == [1.0]


def test_a_hanging_call_outlasts_the_limit_of_stopping() -> None:
    server = Server()
    server.is_open.clear()
    backlog, sender = started(server)
    want(backlog, sender, 1.0)
    assert eventually(lambda: server.num_calls == 1)
    assert not sender.stop(QUICK_S)
    server.is_open.set()
    assert sender.stop(LIMIT_S)


def test_delivering_ends_where_there_is_no_time_left() -> None:
    server = Server()
    backlog = Backlog({})
    sender = Sender(backlog, server.take, "http://here")
    backlog.want("a", readings(1.0))
    assert not sender.deliver(lambda: False)
    assert server.taken == []


def test_pauses_grow_to_a_minute() -> None:
    pauses = [pause_s(num_failures) for num_failures in range(100)]
    assert pauses == sorted(pauses) and pauses[0] < pauses[1] and pauses[-1] == 60.0
