"""Ray as a run finds it, or starts it; in a file of its own, since who has a Ray is not asked for an address."""

import time

import pytest
import ray

from jobs.execution.on_ray import controller
from jobs.execution.on_ray.cluster import RayStartError
from jobs.planning.work import WorkUnit
from tests.fakes.engine import FakeLoad, Recorder, make_context, make_settings, make_unit


def run(units: list[WorkUnit], recorder: Recorder) -> None:
    controller.run_units(
        units,
        make_settings(),
        make_context(),
        on_rows=recorder.on_rows,
        on_event=recorder.on_event,
        load=FakeLoad(),
    )


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no-such-scheme://x"])
def test_cluster_that_cannot_be_reached_is_refused_in_seconds(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    begin_s = time.monotonic()
    with pytest.raises(RayStartError, match="RAY_ADDRESS is right"):
        run([make_unit("u")], Recorder())
    assert time.monotonic() - begin_s < 10


@pytest.mark.ray
def test_ray_that_was_started_for_the_run_is_stopped_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recorder, units = Recorder(), [make_unit("u")]
    run(units, recorder)
    assert recorder.identities() == [key.identity for unit in units for key in unit.row_keys]
    assert not ray.is_initialized()
