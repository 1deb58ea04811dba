"""MLflow shows what the result files hold; it can stop a run only before its first unit.

`start` raises when the server cannot be used. After that nothing raises, and nothing waits longer than the
limits below: rows that cannot be delivered are kept and sent again at the end. Replays add nothing, because
every point has the time and step of its row. Nothing lives in MLflow's thread-local active run.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.metric_points import MetricPoint, aggregate_points, row_points, row_timestamp_ms
from jobs.shown_paths import python
from jobs.tracker import NullTracker, Row, SweepSummary, TrackedSweep, Tracker, TrackingError
from jobs.tracking_uri import check_usable, is_http

logger = logging.getLogger(__name__)

# MLflow's own limits (120 s, 7 retries) would hold a run up for minutes when its server dies.
_LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_MAX_METRICS_PER_BATCH = 1000  # MLflow refuses more
_MAX_PARAMS_PER_BATCH = 100  # likewise
_MAX_PARAM_CHARS = 6000  # likewise
_MAX_NOTE_CHARS = 5000  # tags are refused above this by servers older than 3.0
_ROLE, _SWEEP, _VARIANT = "kvmerger.role", "kvmerger.sweep_id", "kvmerger.variant"


def make_tracker(*, is_enabled: bool, uri: str, artifact_dir: Path) -> Tracker:
    """The tracker that the settings ask for; nothing is opened yet, and MLflow is not imported.

    `artifact_dir` receives artifacts where no tracking server takes them.
    """
    return MlflowTracker(uri, artifact_dir) if is_enabled else NullTracker()


@dataclass
class MlflowTracker:
    """One parent run per sweep and one child per variant, which a resumed sweep continues."""

    uri: str
    artifact_dir: Path
    _client: Any = field(init=False, default=None)
    _sweep: TrackedSweep = field(init=False)
    _experiment_id: str = field(init=False, default="")
    _parent_id: str = field(init=False, default="")
    _child_ids: dict[str, str] = field(init=False, default_factory=dict)
    _undelivered: list[Row] = field(init=False, default_factory=list)
    _is_broken: bool = field(init=False, default=False)
    _has_warned: bool = field(init=False, default=False)
    _last_row_ms: int = field(init=False, default=0)

    def start(self, sweep: TrackedSweep) -> bool:
        """Reach the server, then open or reopen the sweep's runs; returns whether they had to be made.

        Raises:
            TrackingError: the URI cannot be used, with what to do; after at most about 10 s (a new database
                takes some seconds more to be made).
        """
        self._sweep = sweep
        check_usable(self.uri)
        try:
            with _limits():
                self._connect()
                return self._open_runs()
        except TrackingError:
            raise
        except Exception as error:  # MLflow, requests and SQLAlchemy share no base; all mean "not usable"
            raise TrackingError(
                f"tracking uri {self.uri!r} cannot be used ({_root_of(error)}); start the "
                f"server, correct `tracking.uri`, or run with `tracking: off`"
            ) from error

    def record_rows(self, rows: Sequence[Row]) -> None:
        """Send rows to their variants' runs, or keep them for the end when the server fails."""
        self._undelivered.extend(rows)
        if not self._is_broken:
            self._deliver()

    def finish(self, summary: SweepSummary) -> bool:
        """Send what is left, the final numbers and the table; close the runs."""
        self._is_broken = False
        self._deliver()
        return not self._is_broken and self._attempt(lambda: self._close_runs(summary))

    @property
    def how_to_open(self) -> str:
        """The command, or the address, that shows the runs."""
        if is_http(self.uri):
            return f"{self.uri.rstrip('/')}/#/experiments/{self._experiment_id}/runs"
        return f"{python()} -m mlflow ui --backend-store-uri {self.uri}"

    def _connect(self) -> None:
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # they tell every step of making a database
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=self.uri)
        self._client.search_experiments(max_results=1)

    def _open_runs(self) -> bool:
        self._experiment_id = self._find_or_create_experiment()
        for run in self._find_runs():
            tags = run.data.tags
            if tags[_ROLE] == "sweep":
                self._parent_id = run.info.run_id
            else:
                self._child_ids[tags[_VARIANT]] = run.info.run_id
        if self._parent_id:
            self._client.update_run(self._parent_id, status="RUNNING")
            return False
        self._parent_id = self._create_run(self._sweep.name, {_ROLE: "sweep"})
        self._log_params(self._parent_id, self._sweep.params)
        return True

    def _find_or_create_experiment(self) -> str:
        name = self._sweep.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            location = None if is_http(self.uri) else self.artifact_dir.absolute().as_uri()
            return str(self._client.create_experiment(name, artifact_location=location))
        if experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the experiment {name!r} is in MLflow's bin; set another `tracking.experiment`, or run "
                f"`mlflow experiments restore -x {experiment.experiment_id}`"
            )
        return str(experiment.experiment_id)

    def _find_runs(self) -> Iterator[Any]:
        token: str | None = None
        while token != "":
            page = self._client.search_runs(
                [self._experiment_id], f"tags.`{_SWEEP}` = '{self._sweep.sweep_id}'", page_token=token
            )
            yield from page
            token = page.token or ""

    def _create_run(self, run_name: str, tags: Mapping[str, str | None]) -> str:
        tags = {_SWEEP: self._sweep.sweep_id, "mlflow.source.git.commit": self._sweep.git_commit, **tags}
        present = {key: value for key, value in tags.items() if value is not None}
        run = self._client.create_run(self._experiment_id, tags=present, run_name=run_name)
        return str(run.info.run_id)

    def _child_id(self, row: Row) -> str:
        label = row["variant"]
        if label not in self._child_ids:
            self._child_ids[label] = self._create_run(label, _child_tags(row, self._parent_id))
            params = json.loads(row["policy_params"] or "{}")
            self._log_params(self._child_ids[label], {key: str(value) for key, value in params.items()})
        return self._child_ids[label]

    def _deliver(self) -> None:
        rows = list(self._undelivered)
        if self._attempt(lambda: self._send(rows)):
            self._undelivered.clear()

    def _send(self, rows: Sequence[Row]) -> None:
        points_by_run: dict[str, list[MetricPoint]] = {}
        for row in rows:
            points = row_points(row, self._sweep.item_steps[row["item_id"]])
            points_by_run.setdefault(self._child_id(row), []).extend(points)
            self._last_row_ms = max(self._last_row_ms, row_timestamp_ms(row))
        for run_id, points in points_by_run.items():
            self._log_points(run_id, points)

    def _log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        from mlflow.entities import Metric

        for begin in range(0, len(points), _MAX_METRICS_PER_BATCH):
            batch = points[begin : begin + _MAX_METRICS_PER_BATCH]
            self._client.log_batch(run_id, metrics=[Metric(*point) for point in batch])

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entries = [Param(key, value[:_MAX_PARAM_CHARS]) for key, value in params.items()]
        for begin in range(0, len(entries), _MAX_PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=entries[begin : begin + _MAX_PARAMS_PER_BATCH])

    def _close_runs(self, summary: SweepSummary) -> None:
        # The newest row's time, so that a repeat adds no point; without new rows the counts may still have changed.
        time_ms = self._last_row_ms or int(time.time() * 1000)
        self._log_points(self._parent_id, aggregate_points(summary.counts, time_ms))
        for label, values in summary.aggregates.items():
            if label in self._child_ids:
                points = aggregate_points(values, time_ms)
                self._log_points(self._child_ids[label], points)
        self._client.set_tag(self._parent_id, "mlflow.note.content", summary.table_markdown[:_MAX_NOTE_CHARS])
        self._client.log_text(self._parent_id, summary.table_markdown, "summary.md")
        for run_id in (*self._child_ids.values(), self._parent_id):
            self._client.set_terminated(run_id, status=summary.status)

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Whether the action worked; says once that it did not."""
        try:
            with _limits():
                action()
        except Exception as error:  # noqa: BLE001 - rows are on disk; a tracker stops no run
            if not self._has_warned:
                logger.warning(
                    "tracking at %s failed (%s: %s); the run goes on, and what is missing is sent at its end",
                    self.uri,
                    type(error).__name__,
                    error,
                )
            self._is_broken = self._has_warned = True
            return False
        return True


def _child_tags(row: Row, parent_id: str) -> dict[str, str | None]:
    columns = ("policy", "policy_version", "query_mode", "execution", "model", "model_revision")
    return {
        _ROLE: "variant",
        _VARIANT: row["variant"],
        "mlflow.parentRunId": parent_id,
        "budget": row["budget_asked"],
        **{column: row[column] for column in columns},
    }


@contextmanager
def _limits() -> Iterator[None]:
    """MLflow reads its limits from the environment at each request; put ours there and the old ones back."""
    before = {name: os.environ.get(name) for name in _LIMITS}
    os.environ.update(_LIMITS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _root_of(error: BaseException) -> BaseException:
    """What the HTTP client first met, such as "Connection refused", without the retries it is wrapped in."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
