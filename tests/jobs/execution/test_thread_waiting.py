"""Threads that wait sleep where others want the cores, unless somebody has said how they wait."""

from __future__ import annotations

import os

import pytest

from jobs.execution.thread_waiting import choose_thread_waiting


@pytest.mark.parametrize(
    ("load", "found"), [(0.4, {}), (1.1, {"GOMP_SPINCOUNT": "0"}), (9.0, {"GOMP_SPINCOUNT": "0"})]
)
def test_threads_sleep_on_a_busy_machine(load: float, found: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    environment: dict[str, str] = {}
    choose_thread_waiting(environment)
    assert environment == found


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_is_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0), raising=False)
    environment = {name: "ACTIVE"}
    choose_thread_waiting(environment)
    assert environment == {name: "ACTIVE"}


def test_where_nobody_tells_the_load_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg", raising=False)
    environment: dict[str, str] = {}
    choose_thread_waiting(environment)
    assert environment == {}
