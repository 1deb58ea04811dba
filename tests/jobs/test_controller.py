"""What the controller does with a moment's answers, seen by a pool that is no Ray."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from ray import exceptions as ray_errors

from jobs.actor_pool import Answer, Call
from jobs.controller import Controller
from jobs.failure import FailurePolicy
from jobs.result_schema import Row
from jobs.run_events import UnitStarted
from jobs.scheduler import Scheduler
from jobs.work import WorkUnit
from jobs.worker import UnitRunner
from tests.fakes import FakeLoad, Recorder, make_context, make_settings, make_unit


class LoggingPool:
    """Actors that answer everything at once, and a log of what they were given and what was handed over."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._answers: list[Answer] = []
        self._runner = UnitRunner(make_settings().model, make_context(), FakeLoad())
        self._runner.load()

    def start(self, actor_id: int) -> None:
        self._answers += [Answer(actor_id, call, None, None, None) for call in (Call.PLACE, Call.LOAD)]

    def run(self, actor_id: int, unit: WorkUnit) -> None:
        self.log.append(f"run {unit.unit_id}")
        self._answers.append(Answer(actor_id, Call.RUN, unit.unit_id, self._runner.run(unit), None))

    def wait(self, timeout_s: float) -> list[Answer]:
        answers, self._answers = self._answers, []
        return answers

    def stop(self, actor_id: int) -> bool:
        return False


def test_free_actors_have_work_before_anybodys_rows_are_handed_over() -> None:
    units = [
        make_unit(name, cost_tokens=cost) for name, cost in (("a", 4.0), ("b", 3.0), ("c", 2.0), ("d", 1.0))
    ]
    pool, recorder = LoggingPool(), Recorder()

    def on_rows(unit: WorkUnit, rows: Sequence[Row]) -> None:
        pool.log.append(f"rows {unit.unit_id}")
        recorder.on_rows(unit, list(rows))

    scheduler = Scheduler({unit.unit_id: unit.cost_tokens for unit in units}, 2, FailurePolicy(), 60.0)
    Controller(units, make_context(), pool, scheduler, on_rows, recorder.on_event).run()  # type: ignore[arg-type]
    assert pool.log == ["run a", "run b", "run c", "run d", "rows a", "rows b", "rows c", "rows d"]
    assert recorder.identities() == sorted(cell.identity for unit in units for cell in unit.cells)


def test_an_actor_is_given_its_next_unit_before_it_has_answered() -> None:
    units = [make_unit(f"u{index}", cost_tokens=9.0 - index) for index in range(4)]
    pool, recorder = LoggingPool(), Recorder()

    def on_rows(unit: WorkUnit, rows: Sequence[Row]) -> None:
        pool.log.append(f"rows {unit.unit_id}")

    scheduler = Scheduler({unit.unit_id: unit.cost_tokens for unit in units}, 1, FailurePolicy(), 60.0)
    Controller(units, make_context(), pool, scheduler, on_rows, recorder.on_event).run()  # type: ignore[arg-type]
    assert pool.log[:2] == ["run u0", "run u1"], "u1 lies ready"
    assert pool.log.index("rows u3") > pool.log.index("run u3") > pool.log.index("rows u1"), "u3 did not"
    begun = [event.unit_id for event in recorder.events if isinstance(event, UnitStarted)]
    assert begun == [unit.unit_id for unit in units]


class Loading(LoggingPool):
    """Two actors, of which the first cannot load the model and the second dies at the same moment."""

    def start(self, actor_id: int) -> None:
        error = ValueError("no such model") if actor_id == 0 else RuntimeError("gone")
        self._answers.append(Answer(actor_id, Call.LOAD, None, None, as_ray_has_it(error)))


def as_ray_has_it(error: Exception) -> Exception:
    return (
        ray_errors.RayTaskError("load", "", error)
        if isinstance(error, ValueError)
        else ray_errors.RayActorError()
    )


def test_what_ends_the_run_is_what_is_raised() -> None:
    units, pool, recorder = [make_unit("a"), make_unit("b")], Loading(), Recorder()
    scheduler = Scheduler({unit.unit_id: unit.cost_tokens for unit in units}, 2, FailurePolicy(), 60.0)
    controller = Controller(units, make_context(), pool, scheduler, recorder.on_rows, recorder.on_event)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no such model"):
        controller.run()


def test_an_interrupt_while_rows_are_handed_over_keeps_the_others() -> None:
    units = [
        make_unit(name, cost_tokens=cost) for name, cost in (("a", 4.0), ("b", 3.0), ("c", 2.0), ("d", 1.0))
    ]
    pool, handed = LoggingPool(), []

    def on_rows(unit: WorkUnit, rows: Sequence[Row]) -> None:
        handed.append(unit.unit_id)
        if len(handed) == 1:
            raise KeyboardInterrupt

    scheduler = Scheduler({unit.unit_id: unit.cost_tokens for unit in units}, 2, FailurePolicy(), 60.0)
    controller = Controller(units, make_context(), pool, scheduler, on_rows, Recorder().on_event)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        controller.run()
    assert handed == ["a", "b", "c", "d"], "c and d had been given out before, and were answered since"
