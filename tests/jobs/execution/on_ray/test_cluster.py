"""Ray as a run finds it, or starts it; in a file of its own, since who has a Ray is not asked for an address."""

import signal
import time

import pytest
import ray

from jobs.execution.on_ray import cluster, controller
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


@pytest.mark.parametrize("is_hit_early", [True, False])
def test_sigterm_while_ray_starts_or_stops_is_an_interrupt_whatever_handler_ray_sets(
    monkeypatch: pytest.MonkeyPatch, is_hit_early: bool
) -> None:
    def rays_own(number: int, _: object) -> None:
        raise SystemExit(number)

    def start(**_: object) -> None:
        signal.signal(signal.SIGTERM, rays_own)
        if is_hit_early:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "init", start)
    monkeypatch.setattr(cluster.ray, "nodes", list)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), cluster.connected([]):
        pass
    assert signal.getsignal(signal.SIGTERM) is before
