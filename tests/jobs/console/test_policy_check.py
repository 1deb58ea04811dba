"""Of many tracebacks the first is shown."""

from __future__ import annotations

import traceback

from jobs.console.policy_check import first_trace_only


def traced(error: str, words: str = "") -> str:
    try:
        raise RuntimeError(error)
    except RuntimeError:
        return f"{words}{traceback.format_exc()}"


def test_the_first_traceback_is_whole_and_the_others_are_their_last_line() -> None:
    first = traced("boom", "compress raised\n")
    messages = ["nothing was kept", first, "", traced("bang"), traced("boom", "too short\n")]
    assert list(first_trace_only(messages)) == [
        "nothing was kept",
        first,
        "",
        "RuntimeError: bang",
        "too short\nRuntimeError: boom",
    ]


def test_messages_without_a_traceback_stay_whole() -> None:
    assert list(first_trace_only(["nothing was kept"] * 2)) == ["nothing was kept"] * 2
