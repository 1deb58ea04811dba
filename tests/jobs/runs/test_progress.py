"""Progress tells units, rows and time left, as one line in a log and as a bar on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from jobs.execution.run_events import (
    ActorLoaded,
    ActorLost,
    ActorStarting,
    Advice,
    RunEvent,
    UnitEnded,
    UnitStarted,
)
from jobs.execution.scheduling.failure import ErrorKind
from jobs.runs.progress import ProgressView, format_left, seconds_left
from tests.fakes.engine import make_unit

UNITS = [make_unit("a"), make_unit("b")]
EVENTS: list[RunEvent] = [
    ActorStarting("actor 0"),
    ActorLoaded("actor 0"),
    UnitStarted("actor 0", "a", 1),
    UnitEnded("a", 10.0, 5, 0),
    ActorLost("actor 0", ErrorKind.ACTOR_DIED),
    UnitEnded("b", 10.0, 5, 2),
]


def shown(is_terminal: bool) -> str:
    out = io.StringIO()
    with ProgressView(UNITS, Console(file=out, force_terminal=is_terminal, width=120)) as view:
        for event in EVENTS:
            view.on_event(event)
    return out.getvalue()


def test_log_has_plain_lines_and_ends_with_all_units_and_failed_rows() -> None:
    lines = shown(is_terminal=False).splitlines()
    assert lines[0] == "units 0/2: actor 0: loading the model …"
    assert "units 1/2: actor 0: lost (actor_died)" in lines
    assert lines[-1].startswith("units 2/2: 8 rows ok, 2 failed, about 0 s left")
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(("num_done", "num_units", "is_told"), [(1, 3, False), (2, 3, True), (1, 1, True)])
def test_no_pace_is_told_of_one_unit_of_several(num_done: int, num_units: int, is_told: bool) -> None:
    names = "abc"[:num_units]
    out = io.StringIO()
    with ProgressView([make_unit(name) for name in names], Console(file=out, width=120)) as view:
        for name in names[:num_done]:
            view.on_event(UnitEnded(name, 10.0, 5, 0))
        assert ("not known yet" in view._summary()) is not is_told


def test_log_says_which_actor_was_preempted() -> None:
    out = io.StringIO()
    with ProgressView(UNITS, Console(file=out, width=120)) as view:
        view.on_event(ActorLost("actor 3", ErrorKind.PREEMPTED))
    assert "actor 3: lost (preempted)" in out.getvalue()


def test_terminal_shows_a_bar_with_the_last_state() -> None:
    assert "units 2/2" in shown(is_terminal=True)
    assert "8 rows ok, 2 failed" in shown(is_terminal=True)


def test_advice_is_shown_whole_and_as_it_is() -> None:
    out, text = io.StringIO(), f"results go to /disk/[red]/{'x' * 200}: share them"
    # As commands make theirs: nothing that it prints is markup.
    with ProgressView(UNITS, Console(file=out, width=80, markup=False, emoji=False)) as view:
        view.on_event(Advice(text))
    assert out.getvalue() == f"warning: {text}\n"


@pytest.mark.parametrize(
    ("done", "total", "elapsed_s", "expected_s"),
    [(0.0, 10.0, 5.0, None), (5.0, 10.0, 30.0, 30.0), (2.0, 10.0, 4.0, 16.0), (10.0, 10.0, 9.0, 0.0)],
)
def test_time_left_scales_the_pace_so_far(
    done: float, total: float, elapsed_s: float, expected_s: float | None
) -> None:
    assert seconds_left(done, total, elapsed_s) == expected_s


@pytest.mark.parametrize(
    ("left_s", "words"), [(None, "not known"), (42.0, "about 42 s left"), (600.0, "about 10 min left")]
)
def test_time_left_is_told_no_finer_than_it_is_known(left_s: float | None, words: str) -> None:
    assert words in format_left(left_s)
