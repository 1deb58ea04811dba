"""What the controller does with a moment's answers, seen by a pool that is no Ray."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import exceptions as ray_errors

from jobs.execution.on_ray import controller
from jobs.execution.on_ray.controller import Controller, short_lived_results
from jobs.execution.on_ray.pool import Call, CallResult
from jobs.execution.run_events import ActorLost, ActorStarting, Advice, OnRows, UnitStarted
from jobs.execution.scheduling.events import ActorReady, UnitFinished
from jobs.execution.scheduling.failure import DEFAULT_MAX_ATTEMPTS, ErrorKind, FailurePolicy
from jobs.execution.scheduling.scheduler import Scheduler
from jobs.execution.unit_runner import OtherModelError, UnitRunner
from jobs.planning.work import WorkUnit
from jobs.results.schema import Row, check_rows
from kvmerger.budget import LikeVariant
from kvmerger.variants import VariantSpec
from tests.fakes.engine import KNORM, FakeLoad, Recorder, make_context, make_settings, make_unit


def make_controller(
    units: Sequence[WorkUnit],
    pool: Any,
    recorder: Recorder,
    *,
    num_actors: int,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    on_rows: OnRows | None = None,
) -> Controller:
    scheduler = Scheduler(
        {unit.unit_id: unit.cost_tokens for unit in units}, num_actors, FailurePolicy(max_attempts), 60.0
    )
    return Controller(units, make_context(), pool, scheduler, on_rows or recorder.on_rows, recorder.on_event)


def equal_units() -> list[WorkUnit]:
    """Enough of them that one actor has the next one queued."""
    return [make_unit(f"u{index:02}", cost_tokens=1.0) for index in range(12)]


class LoggingPool:
    """Actors that answer everything at once, and a log of what they were given and what was handed over."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._answers: list[CallResult] = []
        self._runner = UnitRunner(make_settings().model, make_context(), FakeLoad())
        self._runner.load()

    def start(self, actor_id: int) -> None:
        self._answers += [CallResult(actor_id, call, None, None, None) for call in (Call.PLACE, Call.LOAD)]

    def run(self, actor_id: int, unit: WorkUnit) -> None:
        self.log.append(f"run {unit.unit_id}")
        self._answers.append(CallResult(actor_id, Call.RUN, unit.unit_id, self._runner.run(unit), None))

    def wait(self, timeout_s: float) -> list[CallResult]:
        answers, self._answers = self._answers, []
        return answers

    def stop(self, actor_id: int) -> bool:
        return False


def test_free_actors_have_work_before_any_rows_are_handed_over() -> None:
    units = [
        make_unit(name, cost_tokens=cost) for name, cost in (("a", 4.0), ("b", 3.0), ("c", 2.0), ("d", 1.0))
    ]
    pool, recorder = LoggingPool(), Recorder()

    def on_rows(unit: WorkUnit, rows: Sequence[Row]) -> None:
        pool.log.append(f"rows {unit.unit_id}")
        recorder.on_rows(unit, list(rows))

    make_controller(units, pool, recorder, num_actors=2, on_rows=on_rows).run()
    assert pool.log == ["run a", "run b", "run c", "run d", "rows a", "rows b", "rows c", "rows d"]
    assert recorder.identities() == sorted(key.identity for unit in units for key in unit.row_keys)


def test_an_actor_is_given_its_next_unit_before_it_has_answered() -> None:
    units = equal_units()
    pool, recorder = LoggingPool(), Recorder()

    def on_rows(unit: WorkUnit, rows: Sequence[Row]) -> None:
        pool.log.append(f"rows {unit.unit_id}")

    make_controller(units, pool, recorder, num_actors=1, on_rows=on_rows).run()
    at = pool.log.index
    assert at("run u01") < at("run u02") < at("rows u00"), "u02 is queued behind u01"
    begun = [event.unit_id for event in recorder.events if isinstance(event, UnitStarted)]
    assert begun == [unit.unit_id for unit in units]


class DyingPool(LoggingPool):
    """An actor answers a unit, and dies of the next one at the same moment: both its calls raise."""

    def __init__(self, dies_of: str) -> None:
        super().__init__()
        self._dies_of = dies_of
        self._alive: set[int] = set()

    def start(self, actor_id: int) -> None:
        self._alive.add(actor_id)
        super().start(actor_id)

    def run(self, actor_id: int, unit: WorkUnit) -> None:
        if actor_id not in self._alive:
            return
        if unit.unit_id == self._dies_of:
            self._dies_of = f"dead {actor_id}"
        if self._dies_of == f"dead {actor_id}":
            error = ray_errors.RayActorError(error_msg=f"it died while {unit.unit_id} was asked for")
            self._answers.append(CallResult(actor_id, Call.RUN, unit.unit_id, None, error))
        else:
            super().run(actor_id, unit)

    def stop(self, actor_id: int) -> bool:
        self._alive.discard(actor_id)
        return True


@pytest.mark.parametrize("dies_of", ["u00", "u01", "u02", "u03", "u11"])
def test_an_actor_that_dies_beside_its_own_answer_costs_no_row(dies_of: str) -> None:
    units = equal_units()
    pool, recorder = DyingPool(dies_of), Recorder()
    make_controller(units, pool, recorder, num_actors=1).run()
    assert recorder.identities() == sorted(key.identity for unit in units for key in unit.row_keys)
    assert {row["status"] for row in recorder.rows} == {"ok"}


def test_a_unit_fails_with_the_error_of_the_actor_that_worked_on_it() -> None:
    """Its actor dies with another unit queued, and the calls are answered in the wrong order."""
    units = equal_units()
    recorder, pool = Recorder(), LoggingPool()
    controller = make_controller(units, pool, recorder, num_actors=1, max_attempts=1)
    scheduler = controller._scheduler
    scheduler.start(0.0)
    for event in (ActorReady(0, 1.0), UnitFinished(0, "u00", 2.0)):
        scheduler.handle(event)
    died = [
        CallResult(0, Call.RUN, unit_id, None, ray_errors.RayActorError(error_msg=f"death told by {unit_id}"))
        for unit_id in ("u02", "u01")
    ]
    controller._enter(died)
    failed = [row for row in recorder.rows if row["status"] == "failed"]
    assert {row["unit_id"] for row in failed} == {"u01"}
    assert all("death told by u02" in row["failure_message"] for row in failed)
    assert "u02" not in controller._errors, "it had not begun"


class KillingPool(DyingPool):
    """Whoever is given one of these policies dies of it."""

    def __init__(self, *killers: str) -> None:
        super().__init__(dies_of="")
        self._killers = set(killers)

    def run(self, actor_id: int, unit: WorkUnit) -> None:
        is_deadly = bool(self._killers & {spec.policy for spec in unit.variants})
        self._dies_of = unit.unit_id if is_deadly else ""
        super().run(actor_id, unit)


KILLER, HARMLESS = VariantSpec("mine", "my:Killer"), VariantSpec("other", "my:Harmless")
LIKE_MINE = replace(KNORM, label="as mine", budget=LikeVariant("mine"))


def test_a_policy_of_a_users_own_that_kills_costs_no_row_of_ours() -> None:
    units = [
        make_unit("deadly", variants=(LIKE_MINE, KNORM, KILLER, HARMLESS), cost_tokens=9.0),
        make_unit("good", variants=(KNORM, HARMLESS)),
        make_unit("nothing else", variants=(KILLER,), cost_tokens=2.0),
    ]
    units[2] = replace(units[2], row_keys=units[2].row_keys[1:])
    recorder = Recorder()
    make_controller(units, KillingPool(KILLER.policy), recorder, num_actors=1).run()
    assert recorder.identities() == sorted(key.identity for unit in units for key in unit.row_keys)
    check_rows("deadly", [row for row in recorder.rows if row["unit_id"] == "deadly"])
    status = {(row["unit_id"], row["variant"]): row["status"] for row in recorder.rows}
    assert status == {
        ("deadly", "full"): "ok", ("deadly", KNORM.label): "ok", ("deadly", "mine"): "failed",
        ("deadly", "as mine"): "failed", ("deadly", "other"): "failed",
        ("good", "full"): "ok", ("good", KNORM.label): "ok", ("good", "other"): "ok",
        ("nothing else", "mine"): "failed",
    }  # fmt: skip
    told = {row["unit_id"]: row["failure_message"] for row in recorder.rows if row["status"] == "failed"}
    assert (
        "done without 'as mine', 'mine', 'other'" in told["deadly"]
        and "it died while deadly was asked" in told["deadly"]
    )
    assert told["nothing else"].startswith("actor_died after 3 attempts")


def test_where_one_attempt_is_all_no_policy_is_left_out() -> None:
    units, recorder = [make_unit("u", variants=(KNORM, HARMLESS))], Recorder()
    make_controller(units, KillingPool(), recorder, num_actors=1, max_attempts=1).run()
    assert {row["status"] for row in recorder.rows} == {"ok"}


class Silent(LoggingPool):
    """Actors that load and say nothing any more."""

    def run(self, actor_id: int, unit: WorkUnit) -> None:
        self.log.append(f"run {unit.unit_id}")


def test_a_unit_on_which_every_actor_hangs_fails_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    hours = itertools.count()
    monkeypatch.setattr(controller.time, "monotonic", lambda: 3600.0 * next(hours))
    unit, recorder, pool = make_unit("u"), Recorder(), Silent()
    make_controller([unit], pool, recorder, num_actors=1).run()
    assert pool.log == ["run u"] * DEFAULT_MAX_ATTEMPTS
    assert {row["failure_type"] for row in recorder.rows} == {"TimeoutError"}
    assert all(
        "stuck after 3 attempts: its actor did not report" in row["failure_message"] for row in recorder.rows
    )
    lost = [event.kind for event in recorder.events if isinstance(event, ActorLost)]
    assert lost == [ErrorKind.STUCK] * DEFAULT_MAX_ATTEMPTS


class Loading(LoggingPool):
    """Two actors, of which the first cannot load the model and the second dies at the same moment."""

    def start(self, actor_id: int) -> None:
        error = ValueError("no such model") if actor_id == 0 else RuntimeError("gone")
        self._answers.append(CallResult(actor_id, Call.LOAD, None, None, as_ray_has_it(error)))


def as_ray_has_it(error: Exception) -> Exception:
    return (
        ray_errors.RayTaskError("load", "", error)
        if isinstance(error, ValueError)
        else ray_errors.RayActorError()
    )


def test_what_ends_the_run_is_what_is_raised() -> None:
    units, pool, recorder = [make_unit("a"), make_unit("b")], Loading(), Recorder()
    controller = make_controller(units, pool, recorder, num_actors=2)
    with pytest.raises(ValueError, match="no such model"):
        controller.run()


class OnTwoMachines(LoggingPool):
    """The first actor's machine has another model."""

    def start(self, actor_id: int) -> None:
        super().start(actor_id)
        if actor_id == 0:
            cause = OtherModelError("it is b, and a was planned")
            error = ray_errors.RayTaskError("load", "", cause).as_instanceof_cause()
            self._answers[-1] = CallResult(actor_id, Call.LOAD, None, None, error)

    def wait(self, timeout_s: float) -> list[CallResult]:
        return sorted(super().wait(timeout_s), key=lambda answer: answer.call is not Call.PLACE)


def test_a_machine_with_another_model_is_told_of_and_left_out() -> None:
    units, pool, recorder = equal_units(), OnTwoMachines(), Recorder()
    make_controller(units, pool, recorder, num_actors=2).run()
    assert recorder.identities() == sorted(key.identity for unit in units for key in unit.row_keys)
    assert {row["status"] for row in recorder.rows} == {"ok"}
    told = [event.text for event in recorder.events if isinstance(event, Advice)]
    assert told == ["it is b, and a was planned. The other actors go on without it"]
    assert sum(isinstance(event, ActorStarting) for event in recorder.events) == 2


def test_an_interrupt_while_rows_are_handed_over_keeps_the_others() -> None:
    units = [
        make_unit(name, cost_tokens=cost) for name, cost in (("a", 4.0), ("b", 3.0), ("c", 2.0), ("d", 1.0))
    ]
    pool, handed = LoggingPool(), []

    def on_rows(unit: WorkUnit, rows: Sequence[Row]) -> None:
        handed.append(unit.unit_id)
        if len(handed) == 1:
            raise KeyboardInterrupt

    controller = make_controller(units, pool, Recorder(), num_actors=2, on_rows=on_rows)
    with pytest.raises(KeyboardInterrupt):
        controller.run()
    assert handed == ["a", "b", "c", "d"], "c and d had been given out before, and were answered since"


@pytest.mark.parametrize(
    ("out", "is_warned"),
    [("/tmp/job/out", True), ("/tmp/job", True), ("/tmp/jobs/out", False), ("/results/a", False)],
)
def test_results_inside_a_jobs_own_copy_are_warned_about(out: str, is_warned: bool) -> None:
    advice = short_lived_results(Path(out), Path("/tmp/job"))
    assert (advice is not None) is is_warned
    assert not advice or all(part in advice for part in (f"{out},", "deletes", "absolute path"))
