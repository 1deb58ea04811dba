"""Several nodes: units spread over them, a node that dies costs no row, and what never fits is refused at once."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.experimental import internal_kv

from jobs.execution.on_ray import controller
from jobs.execution.on_ray.resources import ResourcesError
from jobs.execution.run_events import ActorLost, Advice, UnitStarted
from jobs.execution.scheduling.failure import ErrorKind, FailurePolicy
from tests.fakes.engine import Recorder, make_context, make_planned, make_settings, make_unit
from tests.fakes.ray_pool import HANG_ONCE_ID, MEETING_TIMEOUT_S, PlacedLoad

pytestmark = pytest.mark.ray
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
# Ray notices a dead node after 2 s instead of 15.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


@pytest.fixture
def nodes() -> Iterator[list[Any]]:
    """Two nodes of one core each beside a head without any; this process has joined."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH_CHECKS},
    )
    try:
        made = [cluster.add_node(**NODE) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        cluster.shutdown()


def run(
    units: list[Any],
    recorder: Recorder,
    load: PlacedLoad,
    settings: Any,
    failure: FailurePolicy | None = None,
) -> None:
    controller.run_units(
        units,
        settings,
        make_context(),
        on_rows=recorder.on_rows,
        on_event=recorder.on_event,
        load=load,
        failure=failure,
    )


def kill_node(node: Any) -> None:
    """The raylet and everything it started, at once, as a power cut would."""
    raylet = psutil.Process(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def take_back(node: Any) -> None:
    """As a cloud takes a spot machine back: a notice first, the end when its time is over."""
    reason, deadline_s = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, time.time() + 1
    is_accepted, why_not = ray._private.worker.global_worker.gcs_client.drain_node(
        node.node_id, reason, "taken back", int(1000 * deadline_s)
    )
    assert is_accepted, why_not
    while time.time() < deadline_s + 0.1:  # an end before that is no preemption to Ray
        time.sleep(0.05)
    kill_node(node)


def autoscaler_report() -> dict[str, Any] | None:
    status = internal_kv._internal_kv_get("__autoscaling_status")
    return json.loads(status).get("autoscaler_report") if status else None


def places_of(recorder: Recorder) -> set[str]:
    return {row["device_name"] for row in recorder.rows}


def test_units_spread_over_nodes_and_a_node_that_dies_costs_no_row(nodes: list[Any], tmp_path: Path) -> None:
    units = [make_unit(f"u{index}", cost_tokens=float(index)) for index in range(6)]
    units.append(make_unit("hangs", make_planned("h", HANG_ONCE_ID), cost_tokens=99.0))
    killed: list[str] = []

    def kill_where_it_hangs() -> None:
        deadline_s = time.monotonic() + MEETING_TIMEOUT_S
        while not (tmp_path / "hanging").exists() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        killed.append((tmp_path / "hanging").read_text())
        kill_node(next(node for node in nodes if killed[0].startswith(node.node_id)))

    watcher = threading.Thread(target=kill_where_it_hangs)
    watcher.start()
    recorder = Recorder()
    settings = make_settings(model={"name": str(tmp_path)}, output_dir=tmp_path / "results")
    run(units, recorder, PlacedLoad(tmp_path, num_expected=2), settings)
    watcher.join()

    assert recorder.identities() == sorted(key.identity for unit in units for key in unit.row_keys)
    assert {row["status"] for row in recorder.rows} == {"ok"}
    attempts = [event.attempt for event in recorder.events if isinstance(event, UnitStarted)]
    assert max(attempts) == 2 and any(isinstance(event, ActorLost) for event in recorder.events)
    assert killed and killed[0] not in {
        row["device_name"] for row in recorder.rows if row["unit_id"] == "hangs"
    }
    assert not any(isinstance(event, Advice) for event in recorder.events)  # this is no job


def test_a_drained_node_costs_no_attempt(nodes: list[Any], tmp_path: Path) -> None:
    units = [make_unit("hangs", make_planned("h", HANG_ONCE_ID), cost_tokens=99.0), make_unit("u")]

    def take_back_where_it_hangs() -> None:
        deadline_s = time.monotonic() + MEETING_TIMEOUT_S
        while not (tmp_path / "hanging").exists() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        place = (tmp_path / "hanging").read_text()
        take_back(next(node for node in nodes if place.startswith(node.node_id)))

    watcher = threading.Thread(target=take_back_where_it_hangs)
    watcher.start()
    recorder = Recorder()
    # With one attempt in all, any other death would be a failed row.
    run(units, recorder, PlacedLoad(tmp_path), make_settings(), FailurePolicy(max_attempts=1))
    watcher.join()
    assert {row["status"] for row in recorder.rows} == {"ok"}
    lost = [event.kind for event in recorder.events if isinstance(event, ActorLost)]
    assert lost == [ErrorKind.PREEMPTED]


def test_without_a_count_every_node_has_its_actor_and_what_no_node_can_ever_hold_is_refused(
    nodes: list[Any], tmp_path: Path
) -> None:
    units = [make_unit(f"u{index}") for index in range(4)]
    recorder = Recorder()
    run(units, recorder, PlacedLoad(tmp_path, num_expected=2), make_settings())
    assert recorder.identities() == sorted(key.identity for unit in units for key in unit.row_keys)
    assert len({place.partition(":")[0] for place in places_of(recorder)}) == 2

    recorder = Recorder()
    deadline_s = time.monotonic() + MEETING_TIMEOUT_S
    # A head says a few seconds after its start whether it can grow, and some time before that that it has nothing to say.
    while not autoscaler_report():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    for actors in ({"num_cpus": 2}, {"num_gpus": 0.25}, {"count": 3}):
        with pytest.raises(ResourcesError, match=r"cannot grow.*`actors`"):
            run([make_unit("u")], recorder, PlacedLoad(tmp_path), make_settings(actors=actors))
    assert recorder.events == []
