"""A tracker can stop a run only at its start, loses no row while its server is away, and doubles none."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient

from jobs.tracker import NullTracker, SweepSummary, TrackedSweep, TrackingError
from jobs.tracking import MlflowTracker, make_tracker

PROBE_LIMIT_S = 12.0
SERVER_START_LIMIT_S = 120.0
SUMMARY = SweepSummary(
    "FINISHED", "| variant | score |\n", {"rows_ok": 2.0}, {"knorm@0.5": {"score/mean": 0.5}}
)


def make_row(variant: str = "knorm@0.5", item_id: str = "item0", **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "variant": variant,
        "item_id": item_id,
        "policy": variant.partition("@")[0],
        "policy_version": "1",
        "policy_params": '{"window_size": 32}',
        "budget_asked": '"0.5"',
        "query_mode": "query_aware",
        "execution": "fused",
        "model": "demo",
        "model_revision": None,
        "benchmark": "longbench",
        "task": "qasper",
        "score": 1.0,
        "kl_mean": 0.5,
        "top1_agreement": 0.75,
        "answer_nll": None,
        "kv_bytes": 4096,
        "kept_ratio": 0.5,
        "trace": '[[0, "prefill", 100, 200], [1, "decode", 120, 200]]',
        "created_at_s": 1700000000.0,
    }
    return row | changes


def make_sweep(**changes: Any) -> TrackedSweep:
    settings: dict[str, Any] = {
        "sweep_id": "demo-1",
        "name": "demo",
        "experiment": "kv",
        "item_steps": {f"item{index}": index for index in range(2000)},
        "params": {"model.name": "demo"},
        "git_commit": "abc123",
    }
    return TrackedSweep(**(settings | changes))


def sqlite_tracker(folder: Path) -> MlflowTracker:
    return MlflowTracker(f"sqlite:///{folder / 'new' / 'mlflow.db'}", folder / "new" / "artifacts")


def runs_of(uri: str) -> dict[str, Any]:
    """Role or variant → run, over every experiment."""
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    tags = [(run.data.tags, run) for run in runs]
    found = {tag.get("kvmerger.variant", tag["kvmerger.role"]): run for tag, run in tags}
    assert len(found) == len(runs), "two runs for one variant"
    return found


def history(uri: str, run: Any, key: str) -> list[tuple[int, float]]:
    metrics = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
    return sorted((metric.step, metric.value) for metric in metrics)


def test_sweep_has_one_parent_and_a_child_per_variant_with_its_rows(tmp_path: Path) -> None:
    tracker = sqlite_tracker(tmp_path)
    tracker.start(make_sweep())
    tracker.record_rows([make_row(), make_row("full"), make_row(item_id="item1", score=0.0)])
    assert tracker.finish(SUMMARY)
    runs = runs_of(tracker.uri)
    parent, child = runs["sweep"], runs["knorm@0.5"]
    assert set(runs) == {"sweep", "knorm@0.5", "full"}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["budget"] == '"0.5"'
    assert child.data.tags["mlflow.source.git.commit"] == "abc123"
    assert child.data.params == {"window_size": "32"}
    assert history(tracker.uri, child, "score/longbench/qasper") == [(0, 1.0), (1, 0.0)]
    assert child.data.metrics["score/mean"] == 0.5
    assert "fidelity/answer_nll" not in child.data.metrics
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_summary_is_an_artifact_and_the_note_of_the_parent(tmp_path: Path) -> None:
    tracker = sqlite_tracker(tmp_path)
    tracker.start(make_sweep())
    tracker.finish(SUMMARY)
    parent = runs_of(tracker.uri)["sweep"]
    assert parent.data.tags["mlflow.note.content"] == SUMMARY.table_markdown
    assert parent.data.metrics == {"rows_ok": 2.0}
    summaries = list((tmp_path / "new" / "artifacts").rglob("summary.md"))
    assert [path.read_text() for path in summaries] == [SUMMARY.table_markdown]


def test_resumed_sweep_continues_its_runs_and_rows_sent_again_add_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        tracker = sqlite_tracker(tmp_path)
        tracker.start(make_sweep(params={"limit": "changed by the second run"}))
        tracker.record_rows([make_row()])
        tracker.finish(SUMMARY)
    runs = runs_of(tracker.uri)
    assert set(runs) == {"sweep", "knorm@0.5"}
    assert history(tracker.uri, runs["knorm@0.5"], "memory/trace_live_bytes") == [(0, 100.0), (1, 120.0)]


def test_more_points_than_one_batch_holds_all_arrive(tmp_path: Path) -> None:
    tracker = sqlite_tracker(tmp_path)
    tracker.start(make_sweep())
    tracker.record_rows([make_row(item_id=f"item{index}", trace=None) for index in range(250)])
    assert tracker.finish(SUMMARY)
    child = runs_of(tracker.uri)["knorm@0.5"]
    assert len(history(tracker.uri, child, "fidelity/kl_mean")) == 250


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("./mlruns", "is a folder"),
        ("sqlite:////proc/none/mlflow.db", "cannot write"),
        ("postgresql://127.0.0.1:9/mlflow", "no database answers at 127.0.0.1:9"),
        ("http://127.0.0.1:9", "cannot be used"),
        ("carrier-pigeon://x", "cannot be used"),
    ],
)
def test_unusable_uri_stops_the_run_before_it_starts_with_the_remedy(
    uri: str, reason: str, tmp_path: Path
) -> None:
    begin_s = time.monotonic()
    with pytest.raises(TrackingError, match=reason):
        MlflowTracker(uri, tmp_path).start(make_sweep())
    assert time.monotonic() - begin_s < PROBE_LIMIT_S


def test_server_that_accepts_and_never_answers_is_given_up_in_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin_s = time.monotonic()
        with pytest.raises(TrackingError, match="tracking: off"):
            MlflowTracker(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path).start(make_sweep())
    assert time.monotonic() - begin_s < PROBE_LIMIT_S


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text(
        "not a database, but long enough to look like one at first sight" * 20
    )
    with pytest.raises(TrackingError, match=r"mlflow\.db"):
        MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path).start(make_sweep())


def test_deleted_experiment_is_refused_with_the_way_to_restore_it(tmp_path: Path) -> None:
    tracker = sqlite_tracker(tmp_path)
    tracker.start(make_sweep())
    client = MlflowClient(tracking_uri=tracker.uri)
    client.delete_experiment(client.get_experiment_by_name("kv").experiment_id)
    with pytest.raises(TrackingError, match="experiments restore"):
        sqlite_tracker(tmp_path).start(make_sweep())


def test_limits_on_http_do_not_outlive_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    sqlite_tracker(tmp_path).start(make_sweep())
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_tracking_off_delivers_nothing_and_is_never_behind(tmp_path: Path) -> None:
    tracker = make_tracker(is_enabled=False, uri="http://127.0.0.1:9", artifact_dir=tmp_path)
    assert isinstance(tracker, NullTracker)
    tracker.start(make_sweep())
    assert tracker.finish(SUMMARY)


def test_sweep_id_that_a_search_could_not_quote_is_refused() -> None:
    with pytest.raises(ValueError, match="o'clock"):
        make_sweep(sweep_id="o'clock")


class Server:
    """A real `mlflow server` on a port of its own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {
            "--backend-store-uri": f"sqlite:///{self.folder / 'mlflow.db'}",
            "--artifacts-destination": str(self.folder / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        arguments = [word for option in options.items() for word in option]
        command = [sys.executable, "-m", "mlflow", "server", *arguments]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline_s = time.monotonic() + SERVER_START_LIMIT_S
        while not self._is_healthy():
            assert time.monotonic() < deadline_s, (self.folder / "server.log").read_text()[-2000:]
            time.sleep(0.5)

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)
            self.process = None

    def _is_healthy(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def test_server_killed_midway_stops_nothing_and_gets_every_row_once_it_is_back(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker(server.uri, tmp_path)
    tracker.start(make_sweep())
    tracker.record_rows([make_row()])
    server.kill()
    begin_s = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="jobs.tracking"):
        tracker.record_rows([make_row(item_id="item1")])
        tracker.record_rows([make_row("full")])
    assert time.monotonic() - begin_s < PROBE_LIMIT_S
    assert len([record for record in caplog.records if record.name == "jobs.tracking"]) == 1
    assert not tracker.finish(SUMMARY)
    server.start()
    assert tracker.finish(SUMMARY)
    runs = runs_of(server.uri)
    assert set(runs) == {"sweep", "knorm@0.5", "full"}
    assert history(server.uri, runs["knorm@0.5"], "score/longbench/qasper") == [(0, 1.0), (1, 1.0)]
