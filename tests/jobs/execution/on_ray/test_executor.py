"""On Ray every row ends as exactly one row, also when actors die, and a run that cannot start says why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import exceptions as ray_errors

from jobs.execution.on_ray import controller
from jobs.execution.on_ray.call_results import error_kind, event_of
from jobs.execution.on_ray.pool import Call, CallResult
from jobs.execution.on_ray.resources import ActorResources, ResourcesError
from jobs.execution.run_events import ActorLost, UnitEnded, UnitStarted
from jobs.execution.scheduling.events import ActorDied, UnitFailed
from jobs.execution.scheduling.failure import ErrorKind, FailurePolicy
from jobs.execution.unit_runner import DeviceLostError, LoadEngine, OtherModelError
from jobs.planning.work import WorkUnit
from jobs.results.rows import RunContext
from jobs.results.schema import check_rows
from jobs.settings.schema import Settings
from tests.fakes.engine import (
    DIE_ID,
    DIE_ONCE_ID,
    RAISE_ID,
    FakeLoad,
    Recorder,
    make_context,
    make_planned,
    make_settings,
    make_unit,
)
from tests.fakes.ray_pool import PlacedLoad

OBJECT_STORE_BYTES = 100 * 2**20


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    yield
    ray.shutdown()


def run(
    units: list[WorkUnit],
    recorder: Recorder,
    load: LoadEngine,
    settings: Settings | None = None,
    context: RunContext | None = None,
    **options: Any,
) -> None:
    controller.run_units(
        units,
        settings or make_settings(),
        context or make_context(),
        on_rows=recorder.on_rows,
        on_event=recorder.on_event,
        load=load,
        **options,
    )


class SlowToWrite(Recorder):
    """Takes its time with one unit's rows."""

    def __init__(self, unit_id: str) -> None:
        super().__init__()
        self._unit_id = unit_id

    def on_rows(self, unit: WorkUnit, rows: list[dict[str, Any]]) -> None:
        if unit.unit_id == self._unit_id:
            time.sleep(1.5)
        super().on_rows(unit, rows)


def identities_of(units: list[WorkUnit]) -> list[str]:
    return sorted(key.identity for unit in units for key in unit.row_keys)


@pytest.mark.ray
def test_every_row_is_there_once_with_several_actors(local_ray: None, tmp_path: Path) -> None:
    units = [make_unit(f"u{index}", cost_tokens=float(index)) for index in range(6)]
    units.append(make_unit("raises", make_planned("r", RAISE_ID)))
    recorder = Recorder()
    run(units, recorder, FakeLoad(tmp_path), resources=ActorResources(2, num_cpus=1, num_gpus=0))
    assert recorder.identities() == identities_of(units)
    assert {row["unit_id"] for row in recorder.rows if row["status"] == "failed"} == {"raises"}
    assert 1 <= len(list(tmp_path.glob("loaded-*"))) <= 2


@pytest.mark.ray
def test_two_actors_share_the_units_as_the_settings_say(local_ray: None, tmp_path: Path) -> None:
    units = [make_unit(f"u{index}") for index in range(6)]
    recorder = Recorder()
    load = PlacedLoad(tmp_path, num_expected=2)
    run(units, recorder, load, settings=make_settings(actors={"count": 2, "num_cpus": 1}))
    assert recorder.identities() == identities_of(units) and len(recorder.units) == len(set(recorder.units))
    assert len({row["device_name"] for row in recorder.rows}) == 2


@pytest.mark.ray
def test_actor_killed_mid_unit_has_its_unit_done_by_another(local_ray: None, tmp_path: Path) -> None:
    units = [make_unit("dies", make_planned("d", DIE_ONCE_ID), cost_tokens=9.0), make_unit("good")]
    recorder = Recorder()
    run(units, recorder, FakeLoad(tmp_path))
    assert (tmp_path / "died").exists()
    assert recorder.identities() == identities_of(units)
    assert {row["status"] for row in recorder.rows} == {"ok"}
    attempts = [event.attempt for event in recorder.events if isinstance(event, UnitStarted)]
    assert sorted(attempts) == [1, 1, 2]
    assert len([event for event in recorder.events if isinstance(event, ActorLost)]) == 1


@pytest.mark.ray
def test_an_actor_that_dies_while_earlier_rows_are_written_costs_no_row(
    local_ray: None, tmp_path: Path
) -> None:
    """While the driver writes, one answer comes and its actor dies of the unit queued there: both are seen at once."""
    units = [make_unit(f"u{index}", cost_tokens=1.0) for index in range(12)]
    units[2] = make_unit("dies", make_planned("d", DIE_ONCE_ID), cost_tokens=1.0)
    recorder = SlowToWrite("u0")
    run(units, recorder, FakeLoad(tmp_path), resources=ActorResources(1, num_cpus=1, num_gpus=0))
    assert (tmp_path / "died").exists()
    assert recorder.identities() == identities_of(units)
    assert {row["status"] for row in recorder.rows} == {"ok"}


@pytest.mark.ray
def test_unit_that_kills_every_actor_ends_as_failed_rows_and_the_others_run(
    local_ray: None, tmp_path: Path
) -> None:
    units = [make_unit("dies", make_planned("d", DIE_ID), cost_tokens=99.0)]
    units += [make_unit(f"good{index}") for index in range(4)]
    recorder = Recorder()
    run(units, recorder, FakeLoad(tmp_path), failure=FailurePolicy(max_attempts=2))
    assert recorder.identities() == identities_of(units)
    failed = [row for row in recorder.rows if row["status"] == "failed"]
    check_rows("dies", failed)
    assert {(row["unit_id"], row["failure_phase"], row["failure_type"]) for row in failed} == {
        ("dies", "actor", "ActorDiedError")
    }
    assert all("after 2 attempts" in row["failure_message"] for row in failed)
    assert sum(isinstance(event, UnitEnded) for event in recorder.events) == len(units)


@pytest.mark.ray
def test_model_that_cannot_be_loaded_ends_the_run_with_its_own_error(local_ray: None) -> None:
    with pytest.raises(ValueError, match=r"^no such model$"):
        run([make_unit("u")], Recorder(), FakeLoad(error=ValueError("no such model")))


@pytest.mark.ray
def test_another_model_than_was_planned_ends_the_run_with_both_fingerprints(local_ray: None) -> None:
    recorder, context = Recorder(), make_context(model_revision="files-aaaaaaaaaaaa")
    with pytest.raises(
        OtherModelError, match=r"is files-bbbbbbbbbbbb on .* and files-aaaaaaaaaaaa was planned"
    ):
        run([make_unit("u")], recorder, FakeLoad(revision="files-bbbbbbbbbbbb"), context=context)
    assert recorder.rows == []


@pytest.mark.ray
def test_resources_that_no_node_has_are_an_error_and_not_an_endless_wait(local_ray: None) -> None:
    begin_s = time.monotonic()
    with pytest.raises(ResourcesError, match=r"1000 CPUs.*executor: inline"):
        run(
            [make_unit("u")],
            Recorder(),
            FakeLoad(),
            resources=ActorResources(1, num_cpus=1000, num_gpus=0),
            placement_timeout_s=2.0,
        )
    assert time.monotonic() - begin_s < 20


@pytest.mark.ray
def test_interrupt_hands_over_what_is_finished_and_frees_the_actors(local_ray: None, tmp_path: Path) -> None:
    class Interrupting(Recorder):
        def on_rows(self, unit: WorkUnit, rows: list[dict[str, Any]]) -> None:
            super().on_rows(unit, rows)
            raise KeyboardInterrupt

    recorder = Interrupting()
    units = [make_unit(f"u{index}", cost_tokens=float(index)) for index in range(3)]
    with pytest.raises(KeyboardInterrupt):
        run(units, recorder, FakeLoad(tmp_path))
    # u1 was given out before u2's rows were handed over, and may be finished by now.
    assert recorder.units in (["u2"], ["u2", "u1"])
    recorder = Recorder()
    run(units[:2], recorder, FakeLoad(tmp_path), placement_timeout_s=60.0)
    assert recorder.identities() == identities_of(units[:2])


@pytest.mark.ray
def test_nothing_to_do_starts_no_actor(local_ray: None) -> None:
    recorder = Recorder()
    run([], recorder, FakeLoad())
    assert recorder.events == []


def raised(cause: Exception) -> Exception:
    return ray_errors.RayTaskError("run", "Traceback …", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "call", "kind"),
    [
        (ray_errors.ActorDiedError(), Call.RUN, ErrorKind.ACTOR_DIED),
        (ray_errors.RayActorError(preempted=True), Call.RUN, ErrorKind.PREEMPTED),
        (ray_errors.RayActorError(preempted=True), Call.LOAD, ErrorKind.PREEMPTED),
        (ray_errors.RayActorError(preempted=False), Call.RUN, ErrorKind.ACTOR_DIED),
        (ray_errors.ActorUnavailableError("away", None), Call.RUN, ErrorKind.ACTOR_DIED),
        (ray_errors.NodeDiedError("gone"), Call.RUN, ErrorKind.NODE_DIED),
        (ray_errors.WorkerCrashedError(), Call.RUN, ErrorKind.ACTOR_DIED),
        (ray_errors.OutOfMemoryError("full"), Call.RUN, ErrorKind.OUT_OF_HOST_MEMORY),
        (ray_errors.ObjectLostError("aa" * 28, None, ""), Call.RUN, ErrorKind.RESULT_LOST),
        (raised(DeviceLostError("lost")), Call.RUN, ErrorKind.DEVICE_LOST),
        (raised(OtherModelError("other")), Call.LOAD, ErrorKind.OTHER_MODEL),
        (raised(KeyError("x")), Call.RUN, ErrorKind.UNIT_RAISED),
        (raised(ValueError("no model")), Call.LOAD, ErrorKind.LOAD_RAISED),
        (raised(ImportError("no jobs")), Call.PLACE, ErrorKind.INTERNAL),
        (ray_errors.RuntimeEnvSetupError("broken"), Call.PLACE, ErrorKind.INTERNAL),
    ],
)
def test_errors_are_told_apart_by_type(error: Exception, call: Call, kind: ErrorKind) -> None:
    assert error_kind(error, call) is kind


def test_actor_counts_as_gone_unless_the_error_says_that_it_lives() -> None:
    lost = CallResult(0, Call.RUN, "u", None, ray_errors.ObjectLostError("aa" * 28, None, ""))
    assert isinstance(event_of(lost, 1.0), UnitFailed)
    died = CallResult(0, Call.RUN, "u", None, ray_errors.ActorDiedError())
    assert isinstance(event_of(died, 1.0), ActorDied)
    device = CallResult(0, Call.RUN, "u", None, raised(DeviceLostError("lost")))
    assert isinstance(event_of(device, 1.0), ActorDied)
