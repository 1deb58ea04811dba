"""A crash that breaks many checks is read once."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from jobs.console.policy_check import traces_once


def crash() -> None:
    raise RuntimeError("boom")


def crash_elsewhere() -> None:
    raise RuntimeError("boom")


def traced(raising: Callable[[], None], words: str = "") -> str:
    try:
        raising()
    except RuntimeError:
        return f"{words}{traceback.format_exc()}"
    return ""


def test_a_traceback_is_shown_once_however_it_was_reached() -> None:
    first, again = traced(crash, "compress raised\n"), traced(lambda: crash(), "too short\n")
    assert list(traces_once([first, "", again, traced(crash)])) == [
        first,
        "",
        "too short: RuntimeError: boom (as above)",
        "RuntimeError: boom (as above)",
    ]


def test_errors_of_another_place_and_messages_without_a_trace_stay_whole() -> None:
    messages = [traced(crash), traced(crash_elsewhere), "nothing was kept", "nothing was kept"]
    assert list(traces_once(messages)) == messages
