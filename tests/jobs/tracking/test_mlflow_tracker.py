"""A tracker can stop a run only at its start, loses nothing while its server is away, and doubles nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from jobs.results.schema import Row
from jobs.tracking import mlflow_tracker
from jobs.tracking.metrics import MetricPoint, Readings
from jobs.tracking.mlflow_tracker import MlflowTracker, Timeouts, make_tracker
from jobs.tracking.tracker import (
    EXPERIMENT_ID,
    RUN_ID,
    VIEW,
    NullTracker,
    SweepReport,
    TrackedSweep,
    TrackedVariant,
    TrackingError,
    VariantReport,
)
from tests.fakes.rows import make_row as make_any_row
from tests.servers.mlflow_server import Server

PROBE_LIMIT_S = 12.0
QUICK = Timeouts(request_s=2, finish_s=10.0, retry_pause_s=0.1, num_tries=2)
SCORE, TRACE = "score/longbench/qasper", "trace_bytes/longbench/qasper"
LABELS = ("full", "knorm@0.5")


def make_row(variant: str = "knorm@0.5", item: int = 0, score: float = 1.0, **changes: Any) -> Row:
    values = {"benchmark": "longbench", "task": "qasper", "score": score, "kv_bytes": 4096}
    asked = {"variant": variant, "item_id": f"item{item}"}
    return make_any_row(f"{variant}-{item}", **(values | asked | {"created_at_s": 1.7e9 + item} | changes))


def make_sweep(**changes: Any) -> TrackedSweep:
    settings: dict[str, Any] = {
        "sweep_id": "demo-1",
        "name": "demo",
        "experiment": "kv",
        "variants": {label: TrackedVariant({"policy": label[:5]}, {"window_size": "32"}) for label in LABELS},
        "tags": {"mode": "query_aware", "baseline": "false"},
        "params": {"model.name": "demo"},
        "git_commit": "abc123",
        "started_at_ms": 1_600_000_000_000,
    }
    return TrackedSweep(**(settings | changes))


def make_report(
    values: Mapping[str, float], num_rows: int = 2, trace: tuple[float, ...] = (), **changes: Any
) -> SweepReport:
    points = [MetricPoint(TRACE, value, 1, step) for step, value in enumerate(trace)]
    ended_ms = 1_700_000_000_000
    variant = VariantReport(Readings(values, num_rows, ended_ms), [points], "child **note**")
    settings: dict[str, Any] = {
        "status": "FINISHED",
        "description": f"the answer of {RUN_ID} in {EXPERIMENT_ID}",
        "readings": Readings({"rows/ok": float(num_rows)}, num_rows, ended_ms),
        "variants": {"knorm@0.5": variant},
    }
    return SweepReport(**(settings | changes))


def sqlite_tracker(folder: Path) -> MlflowTracker:
    return MlflowTracker(f"sqlite:///{folder / 'new' / 'mlflow.db'}", folder / "new" / "artifacts", QUICK)


def runs_of(uri: str) -> dict[str, Any]:
    """Role or variant → run, over every experiment."""
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    tags = [(run.data.tags, run) for run in runs]
    found = {tag.get("kvmerger.variant", tag["kvmerger.role"]): run for tag, run in tags}
    assert len(found) == len(runs), "two runs for one variant"
    return found


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database MLflow has made its tables in, which takes it seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path, empty_database: bytes) -> Path:
    """A folder with such a database, as `sqlite_tracker` wants it."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mlflow.db").write_bytes(empty_database)
    return tmp_path


def history(uri: str, run: Any, key: str) -> list[tuple[int, float]]:
    metrics = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
    return sorted((metric.step, metric.value) for metric in metrics)


def run_once(folder: Path, rows: list[Row], report: SweepReport, **changes: Any) -> MlflowTracker:
    tracker = sqlite_tracker(folder)
    tracker.start(make_sweep(**changes))
    tracker.record_rows(rows)
    assert tracker.finish(report)
    return tracker


def test_sweep_has_one_parent_and_a_child_per_variant_with_the_final_numbers(folder: Path) -> None:
    rows = [make_row(item=item, score=score) for item, score in enumerate([1.0, 0.0])]
    tracker = run_once(folder, rows, make_report({SCORE: 0.5, f"{SCORE}/low": 0.25}))
    runs = runs_of(tracker.uri)
    parent, child = runs["sweep"], runs["knorm@0.5"]
    assert set(runs) == {"sweep", *LABELS}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.data.tags["policy"], parent.data.tags["mode"]) == ("knorm", "query_aware")
    assert child.data.tags["mlflow.source.git.commit"] == "abc123"
    assert child.data.params == {"window_size": "32"} and parent.data.params == {"model.name": "demo"}
    assert (child.data.metrics[SCORE], child.data.metrics[f"{SCORE}/low"]) == (0.5, 0.25)
    assert parent.data.metrics["rows/ok"] == 2.0
    assert {run.info.status for run in (parent, child)} == {"FINISHED"}
    assert (parent.info.start_time, parent.info.end_time) == (1_600_000_000_000, 1_700_000_000_000)


def test_parent_opens_with_the_answer_and_holds_the_files(folder: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    (files / "figures").mkdir(parents=True)
    (files / "figures" / "a.svg").write_text("<svg/>")
    (files / "summary.md").write_text("all tables")
    tracker = run_once(folder, [], make_report({}, folder=files, columns=[SCORE]))
    parent = runs_of(tracker.uri)["sweep"]
    experiment = MlflowClient(tracking_uri=tracker.uri).get_experiment(parent.info.experiment_id)
    answer = f"the answer of {parent.info.run_id} in {experiment.experiment_id}"
    assert parent.data.tags["mlflow.note.content"] == answer
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{VIEW}"])
    assert f"metrics.`{SCORE}`" in view["selectedColumns"]
    assert runs_of(tracker.uri)["knorm@0.5"].data.tags["mlflow.note.content"] == "child **note**"
    stored = {path.name: path.read_text() for path in (folder / "new" / "artifacts").rglob("*.*")}
    assert stored == {"a.svg": "<svg/>", "summary.md": "all tables"}


def test_resumed_sweep_continues_its_runs_and_what_is_told_again_adds_nothing(folder: Path) -> None:
    report = make_report({SCORE: 1.0}, trace=(100.0, 120.0))
    for limit in ("1", "2", "3"):
        tracker = run_once(folder, [make_row(), make_row(item=1)], report, params={"limit": limit})
    runs = runs_of(tracker.uri)
    assert set(runs) == {"sweep", *LABELS}
    assert history(tracker.uri, runs["knorm@0.5"], SCORE) == [(2, 1.0)]
    assert history(tracker.uri, runs["knorm@0.5"], TRACE) == [(0, 100.0), (1, 120.0)]
    assert history(tracker.uri, runs["sweep"], "rows/ok") == [(2, 2.0)]


def test_rows_that_are_new_or_scored_again_change_the_latest_value_and_never_share_a_step(
    folder: Path,
) -> None:
    for num_rows, score in [(2, 1.0), (2, 0.75), (4, 0.5), (3, 0.25)]:
        tracker = run_once(folder, [], make_report({SCORE: score}, num_rows))
    child = runs_of(tracker.uri)["knorm@0.5"]
    assert child.data.metrics[SCORE] == 0.25
    assert history(tracker.uri, child, SCORE) == [(2, 1.0), (3, 0.75), (4, 0.5), (5, 0.25)]


def test_a_promoted_baseline_stays_one_when_its_sweep_goes_on(folder: Path) -> None:
    tracker = run_once(folder, [], make_report({}))
    client, parent = MlflowClient(tracking_uri=tracker.uri), runs_of(tracker.uri)["sweep"]
    assert parent.data.tags["baseline"] == "false"
    client.set_tag(parent.info.run_id, "baseline", "true")
    run_once(folder, [], make_report({}), tags={"mode": "query_aware", "baseline": "false", "policy": "new"})
    tags = runs_of(tracker.uri)["sweep"].data.tags
    assert (tags["baseline"], tags["policy"]) == ("true", "new")


def test_what_only_finished_rows_tell_is_a_tag_of_every_run(folder: Path) -> None:
    tracker = run_once(folder, [], make_report({}, tags={"device_name": "NVIDIA H200"}))
    runs = runs_of(tracker.uri)
    assert {runs[name].data.tags["device_name"] for name in ("sweep", "knorm@0.5")} == {"NVIDIA H200"}


def test_of_two_runs_for_one_variant_the_empty_one_goes(folder: Path) -> None:
    """The answer to a creation got lost, and the client asked again."""
    tracker = run_once(folder, [make_row()], make_report({SCORE: 1.0}))
    client, child = MlflowClient(tracking_uri=tracker.uri), runs_of(tracker.uri)["knorm@0.5"]
    client.create_run(child.info.experiment_id, tags=child.data.tags)
    run_once(folder, [make_row()], make_report({SCORE: 1.0}))
    assert runs_of(tracker.uri)["knorm@0.5"].info.run_id == child.info.run_id


def test_more_points_than_one_batch_holds_all_arrive(folder: Path) -> None:
    values = {f"x{index}": float(index) for index in range(1500)}
    tracker = run_once(folder, [], make_report(values))
    assert runs_of(tracker.uri)["knorm@0.5"].data.metrics == values


def test_deleted_experiment_is_refused_with_the_way_to_restore_it(folder: Path) -> None:
    tracker = run_once(folder, [], make_report({}))
    client = MlflowClient(tracking_uri=tracker.uri)
    client.delete_experiment(client.get_experiment_by_name("kv").experiment_id)
    with pytest.raises(TrackingError, match="experiments restore"):
        sqlite_tracker(folder).start(make_sweep())


def test_runs_go_to_the_experiment_of_the_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(tracking_uri=sqlite_tracker(folder).uri)
    there = client.create_experiment("theirs", artifact_location=(folder / "new" / "artifacts").as_uri())
    run_once(folder, [], make_report({}), experiment_id=there)
    assert len(client.search_runs([there])) == 1 + len(LABELS)
    assert client.get_experiment_by_name("kv") is None
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    for wrong, said in (
        ("77", r"no experiment with the id '77' \(of MLFLOW_EXPERIMENT_ID\)"),
        ("x", "id 'x' at"),
    ):
        with pytest.raises(TrackingError, match=said):
            sqlite_tracker(folder).start(make_sweep(experiment_id=wrong))


def test_limits_on_http_do_not_outlive_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    seen: list[str] = []
    find = mlflow_tracker.open_runs

    def opening(*arguments: Any) -> Any:
        seen.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
        return find(*arguments)

    monkeypatch.setattr(mlflow_tracker, "open_runs", opening)
    run_once(folder, [], make_report({}))
    assert seen == ["77"]  # who sets MLflow's variable knows the server
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_tracking_off_delivers_nothing_and_is_never_behind(tmp_path: Path) -> None:
    tracker = make_tracker(is_enabled=False, uri="http://127.0.0.1:9", artifact_dir=tmp_path)
    assert isinstance(tracker, NullTracker)
    tracker.start(make_sweep())
    assert tracker.finish(make_report({}))


@pytest.fixture
def server(tmp_path: Path, empty_database: bytes) -> Iterator[Server]:
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def test_server_that_hangs_or_dies_stops_nothing_and_gets_everything_once(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One test, because a server takes long to start."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "report.html").write_text("<p>report</p>")
    report = make_report({SCORE: 0.5}, trace=(3.0, 2.0), folder=files)
    rows = [make_row(), make_row(item=1, score=0.0), make_row("full")]

    tracker = MlflowTracker(server.uri, tmp_path, QUICK)
    tracker.start(make_sweep())
    server.hang()
    assert is_given_up_in_time(tracker, rows, report)
    assert "did not take everything" in caplog.messages[-1]

    server.go_on()  # and takes what was sent to it while it hung
    for _ in range(2):
        tracker = MlflowTracker(server.uri, tmp_path, Timeouts())
        tracker.start(make_sweep())
        tracker.record_rows(rows)
        assert tracker.finish(report)
    runs = runs_of(server.uri)
    parent, child = runs["sweep"], runs["knorm@0.5"]
    assert set(runs) == {"sweep", *LABELS}
    assert (child.data.metrics[SCORE], parent.data.metrics["rows/ok"]) == (0.5, 2.0)
    for key, steps in {SCORE: [2], TRACE: [0, 1]}.items():
        assert [step for step, _ in history(server.uri, child, key)] == steps
    assert server.get(f"get-artifact?path=report.html&run_uuid={parent.info.run_id}") == b"<p>report</p>"
    assert tracker.how_to_open.endswith(parent.info.run_id)

    tracker = MlflowTracker(server.uri, tmp_path, QUICK)
    tracker.start(make_sweep())
    server.kill()
    assert is_given_up_in_time(tracker, rows, make_report({SCORE: 0.25}))


def is_given_up_in_time(tracker: MlflowTracker, rows: list[Row], report: SweepReport) -> bool:
    begin_s = time.monotonic()
    tracker.record_rows(rows)
    assert time.monotonic() - begin_s < 1.0
    is_delivered = tracker.finish(report)
    return not is_delivered and time.monotonic() - begin_s < PROBE_LIMIT_S
