"""The inline executor hands over every unit once, costliest first, and keeps what an interrupt leaves."""

from __future__ import annotations

from os import SEEK_END
from pathlib import Path
from typing import Any

import pytest

from jobs.execution import inline
from jobs.execution.run_events import ActorLoaded, ActorStarting, UnitEnded, UnitStarted
from jobs.execution.unit_runner import DeviceLostError, OtherModelError, UnitRunner
from jobs.planning.preparation import prepare
from jobs.planning.work import WorkUnit
from jobs.results.store import ResultStore
from jobs.runs.sweep_run import SweepRun
from jobs.settings.schema import load_settings
from tests.fakes.engine import (
    RAISE_ID,
    FakeLoad,
    Recorder,
    make_context,
    make_planned,
    make_settings,
    make_unit,
)
from tests.fakes.sweeps import save_data, save_settings, save_tiny_model


def run(units: list[WorkUnit], recorder: Recorder, load: FakeLoad | None = None) -> None:
    inline.run_units(
        units,
        make_settings(),
        make_context(),
        on_rows=recorder.on_rows,
        on_event=recorder.on_event,
        load=load or FakeLoad(),
    )


def test_every_row_is_handed_over_once_and_the_costliest_unit_first() -> None:
    units = [make_unit("cheap", cost_tokens=1.0), make_unit("dear", cost_tokens=9.0)]
    recorder = Recorder()
    run(units, recorder)
    assert recorder.units == ["dear", "cheap"]
    assert recorder.identities() == sorted(key.identity for unit in units for key in unit.row_keys)


def test_events_tell_the_run_in_order() -> None:
    recorder = Recorder()
    run([make_unit("u", make_planned("a", RAISE_ID))], recorder)
    kinds = [type(event) for event in recorder.events]
    assert kinds == [ActorStarting, ActorLoaded, UnitStarted, UnitEnded]
    assert recorder.events[-1] == UnitEnded("u", 10.0, num_rows=2, num_failed_rows=2)


def test_nothing_to_do_loads_no_model(tmp_path: Path) -> None:
    run([], Recorder(), FakeLoad(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_model_that_cannot_be_loaded_ends_the_run_with_its_own_error() -> None:
    with pytest.raises(ValueError, match="no such model"):
        run([make_unit("u")], Recorder(), FakeLoad(error=ValueError("no such model")))


def test_a_folder_that_changes_after_the_plan_is_an_error_and_gives_no_row(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    settings = load_settings(save_settings(tmp_path, model, save_data(tmp_path / "data", 1)))
    prepared = prepare(settings, done=(), find_device=lambda: "cpu")
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, SEEK_END)
        file.write(b"\x41")
    store = ResultStore(settings.output_dir)
    with pytest.raises(OtherModelError, match=f"and {prepared.model.revision} was planned"):
        SweepRun(settings, prepared, store).run()
    assert store.identities() == frozenset()


def test_a_lost_device_costs_rows_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(self: UnitRunner, unit: WorkUnit) -> list[Any]:
        raise DeviceLostError("the device stopped working")

    monkeypatch.setattr(UnitRunner, "run", lose)
    recorder = Recorder()
    units = [make_unit("a"), make_unit("b")]
    run(units, recorder)
    assert recorder.identities() == sorted(key.identity for unit in units for key in unit.row_keys)
    assert all(
        event.num_failed_rows == event.num_rows for event in recorder.events if isinstance(event, UnitEnded)
    )


def test_interrupt_keeps_the_units_that_were_handed_over() -> None:
    class Interrupting(Recorder):
        def on_event(self, event: Any) -> None:
            if isinstance(event, UnitStarted) and event.unit_id == "cheap":
                raise KeyboardInterrupt

    recorder = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        run([make_unit("cheap", cost_tokens=1.0), make_unit("dear", cost_tokens=9.0)], recorder)
    assert recorder.units == ["dear"]
