"""What the controller does with a moment's answers, seen by a pool that is no Ray."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.actor_pool import Answer, Call
from jobs.controller import Controller
from jobs.failure import FailurePolicy
from jobs.result_schema import Row
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
