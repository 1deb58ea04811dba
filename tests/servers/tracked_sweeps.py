"""Sweeps as a tracker is told of them, and what an MLflow database holds of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from jobs.results.schema import Row
from jobs.tracking.metrics import MetricPoint, Readings
from jobs.tracking.mlflow_tracker import MlflowTracker, Timeouts
from jobs.tracking.tracker import (
    EXPERIMENT_ID,
    RUN_ID,
    SweepReport,
    TrackedSweep,
    TrackedVariant,
    VariantReport,
)
from tests.fakes.rows import make_row as make_any_row

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


def history(uri: str, run: Any, key: str) -> list[tuple[int, float]]:
    metrics = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
    return sorted((metric.step, metric.value) for metric in metrics)


def run_once(folder: Path, rows: list[Row], report: SweepReport, **changes: Any) -> MlflowTracker:
    tracker = sqlite_tracker(folder)
    tracker.start(make_sweep(**changes))
    tracker.record_rows(rows)
    assert tracker.finish(report)
    return tracker
