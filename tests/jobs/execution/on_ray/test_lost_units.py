"""The failed rows of a unit that is given up: how it was lost, and how often, stands in the message."""

from __future__ import annotations

import pytest

from jobs.execution.on_ray.lost_units import rows_of_lost
from jobs.execution.scheduling.events import FailUnit
from jobs.execution.scheduling.failure import ErrorKind
from tests.fakes.engine import make_context, make_unit


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (FailUnit("u", ErrorKind.ACTOR_DIED, 3), "actor_died after 3 attempts: gone"),
        (
            FailUnit("u", ErrorKind.ACTOR_DIED, 5, 2),
            "actor_died after 5 attempts, 2 of them preempted: gone",
        ),
        (
            FailUnit("u", ErrorKind.PREEMPTED, 20, 20),
            "preempted after 20 attempts, 20 of them preempted: gone",
        ),
    ],
)
def test_message_tells_kind_attempts_and_preemptions(end: FailUnit, words: str) -> None:
    unit = make_unit("u")
    rows = rows_of_lost(unit, end, RuntimeError("gone"), make_context())
    assert len(rows) == len(unit.row_keys)
    assert {row["failure_message"] for row in rows} == {words}
