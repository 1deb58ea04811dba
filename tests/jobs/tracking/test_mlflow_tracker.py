"""A tracker can stop a run only at its start, loses nothing while its server is away, and doubles nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.results.schema import Row
from jobs.tracking import mlflow_tracker
from jobs.tracking.mlflow_tracker import MlflowTracker, Timeouts, make_tracker
from jobs.tracking.tracker import WORKSPACE, NullTracker, SweepReport
from tests.servers.mlflow_server import Server
from tests.servers.tracked_sweeps import (
    LABELS,
    QUICK,
    SCORE,
    TRACE,
    history,
    make_report,
    make_row,
    make_sweep,
    run_once,
    runs_of,
    sqlite_tracker,
)

PROBE_LIMIT_S = 12.0


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


def test_links_are_tags_of_the_sweeps_own_run_while_it_still_runs(folder: Path) -> None:
    tracker = sqlite_tracker(folder)
    tracker.start(make_sweep())
    tracker.record_links({"ray_job_id": "02000000"})
    deadline_s = time.monotonic() + PROBE_LIMIT_S
    while "ray_job_id" not in runs_of(tracker.uri)["sweep"].data.tags:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert runs_of(tracker.uri)["sweep"].info.status == "RUNNING"
    assert tracker.finish(make_report({}, own_tags={"best": "knorm@0.5"}))
    runs = runs_of(tracker.uri)
    assert (runs["sweep"].data.tags["ray_job_id"], runs["sweep"].data.tags["best"]) == (
        "02000000",
        "knorm@0.5",
    )
    assert not {"ray_job_id", "best"} & runs["knorm@0.5"].data.tags.keys()


def test_without_a_server_the_command_comes_first_and_then_the_address_to_open(folder: Path) -> None:
    tracker = run_once(folder, [], make_report({}))
    command, then = tracker.how_to_open.split("\n")
    assert command.endswith(f"-m mlflow ui --backend-store-uri {tracker.uri}")
    parent = runs_of(tracker.uri)["sweep"].info
    page = f"#/experiments/{parent.experiment_id}/runs/{parent.run_id}?{WORKSPACE}"
    assert then == f"then open http://127.0.0.1:5000/{page}"


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


def test_more_points_than_one_batch_holds_all_arrive(folder: Path) -> None:
    values = {f"x{index}": float(index) for index in range(1500)}
    tracker = run_once(folder, [], make_report(values))
    assert runs_of(tracker.uri)["knorm@0.5"].data.metrics == values


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
    assert tracker.how_to_open.endswith(f"/runs/{parent.info.run_id}?{WORKSPACE}")

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
