"""A sweep's runs on an MLflow server: found again by tags, made where missing, filled in batches.

Every call may raise whatever MLflow, requests or SQLAlchemy raise. Nothing lives in MLflow's thread-local active run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.console.addresses import shown_address
from jobs.settings.mlflow_variables import origin_of_id
from jobs.tracking.backlog import PARENT, PointBatch, RunState
from jobs.tracking.connection import connect
from jobs.tracking.metrics import Ranking
from jobs.tracking.tracker import (
    EXPERIMENT_ID,
    RUN_ID,
    VIEW,
    RunStatus,
    SweepReport,
    TrackedDataset,
    TrackedSweep,
    TrackingError,
)
from jobs.tracking.uri import is_http

_MAX_TAGS_PER_BATCH = 100  # MLflow refuses more
_MAX_PARAMS_PER_BATCH = 100  # likewise
_MAX_PARAM_CHARS = 6000  # likewise
_MAX_TAG_CHARS = 5000  # likewise, servers older than 3.0
ROLE_TAG, SWEEP_TAG = "kvmerger.role", "kvmerger.sweep_id"
VARIANT_TAG, _STEP = "kvmerger.variant", "kvmerger.step"
_PARENT_RUN, _NOTE = "mlflow.parentRunId", "mlflow.note.content"
_IS_THERE = "RESOURCE_ALREADY_EXISTS"
_NO_SUCH_ID = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter where it cannot be an id
# Opens the experiment on its list of runs; an unknown kind is taken for an application that calls models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
# Where MLflow's page keeps views that somebody shares; a page that does not know one shows its own columns.
_VIEWS = "mlflow.sharedViewState."
_VIEW_DIGITS = 8
# What `log_table` notes for the page. It is not called, since it appends: a second end would double the table.
_TABLES = "mlflow.loggedArtifacts"
_ONLY_AT_FIRST = ("baseline",)  # promotion may have changed it


class MlflowRuns:
    """The parent run of a sweep and its children, by label; `PARENT` is the parent's. Make it with `open_runs`."""

    def __init__(self, client: Any, experiment_id: str) -> None:
        self._client = client
        self.experiment_id = experiment_id
        self._sweep_id = ""
        self._ids: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._datasets: dict[str, set[tuple[str, str]]] = {}
        self.known: dict[str, RunState] = {}

    @property
    def parent_id(self) -> str:
        """The id of the sweep's own run."""
        return self._ids[PARENT]

    def find_or_create(self, sweep: TrackedSweep) -> None:
        """Take up the runs of an earlier start, and make those that are missing."""
        self._sweep_id = sweep.sweep_id
        found = self._find(sweep.sweep_id)
        source = {"mlflow.source.name": "jobs/sweep.py", "mlflow.source.git.commit": sweep.git_commit or ""}
        shared = {SWEEP_TAG: sweep.sweep_id, **source}
        tags = {ROLE_TAG: "sweep", **shared, **sweep.tags}
        self._take(PARENT, found.get(PARENT), sweep.name, tags, sweep.params, sweep.started_at_ms)
        for place, (label, variant) in enumerate(sweep.variants.items()):
            # MLflow lists the latest first, and the list should be in the order of the table.
            started_at_ms = (
                None if sweep.started_at_ms is None else sweep.started_at_ms + len(sweep.variants) - place
            )
            own = {
                ROLE_TAG: "variant",
                VARIANT_TAG: label,
                _PARENT_RUN: self.parent_id,
                **shared,
                **variant.tags,
            }
            self._take(label, found.get(label), label, own, variant.params, started_at_ms)
        # An earlier end may have left it FINISHED or KILLED.
        self._client.update_run(self.parent_id, status="RUNNING")

    def send(self, batch: PointBatch) -> None:
        """Log a batch; the same one again adds nothing, since every point has its time and step."""
        from mlflow.entities import Metric, RunTag

        tags = [RunTag(key, value[:_MAX_TAG_CHARS]) for key, value in batch.tags]
        if batch.last_step is not None:
            tags.append(RunTag(_STEP, str(batch.last_step)))
        metrics = [Metric(*point) for point in batch.points]
        self._client.log_batch(self._ids[batch.run], metrics=metrics, tags=tags, synchronous=True)

    def close(self, report: SweepReport) -> None:
        """Put files and descriptions in their places and end the runs."""
        if report.folder is not None:
            self._client.log_artifacts(self.parent_id, str(report.folder))
        if report.columns:
            view = _view(self._sweep_id, report.columns, report.ranking)
            self._client.set_experiment_tag(self.experiment_id, f"{_VIEWS}{view_key(self._sweep_id)}", view)
        ids = {RUN_ID: self.parent_id, EXPERIMENT_ID: self.experiment_id, VIEW: view_key(self._sweep_id)}
        description = report.description
        for place, value in ids.items():
            description = description.replace(place, value)
        tables = {_TABLES: json.dumps([{"path": path, "type": "table"} for path in report.tables])}
        own = {**report.tags, **report.own_tags, **(tables if report.tables else {}), _NOTE: description}
        self._set_tags(PARENT, own)
        self._log_datasets(PARENT, report.datasets)
        for label, variant in report.variants.items():
            if label in self._ids:
                self._set_tags(label, {**report.tags, **variant.tags, _NOTE: variant.description})
                self._rename(label, variant.name)
                self._log_datasets(label, report.datasets)
                self._end(label, report.status, variant.readings.time_ms)
        # The parent last: whoever waits for it to end then finds its children whole.
        self._end(PARENT, report.status, report.readings.time_ms)

    def _rename(self, label: str, name: str) -> None:
        if name and name != self._names[label]:
            self._client.update_run(self._ids[label], name=name)
            self._names[label] = name

    def _log_datasets(self, label: str, datasets: Sequence[TrackedDataset]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # MLflow stores an input once; not to ask again spares a sweep that goes on a call for each variant.
        there = self._datasets.setdefault(label, set())
        new = [it for it in datasets if (it.name, it.digest) not in there]
        if new:
            tags = [InputTag("mlflow.data.context", "eval")]
            inputs = [
                DatasetInput(
                    Dataset(it.name, it.digest, it.source_type, it.source, profile=_profile(it)), tags
                )
                for it in new
            ]
            self._client.log_inputs(self._ids[label], inputs)
            there |= {(it.name, it.digest) for it in new}

    def _end(self, label: str, status: RunStatus, time_ms: int) -> None:
        self._client.set_terminated(self._ids[label], status=status, end_time=time_ms or None)

    def _find(self, sweep_id: str) -> dict[str, Any]:
        """The sweep's runs by label."""
        # There are two of a label where the answer to a creation got lost and it was asked for again. The fuller one
        # counts, and the other goes if it is empty.
        found: dict[str, Any] = {}
        for run in self._search(sweep_id):
            label = PARENT if run.data.tags[ROLE_TAG] == "sweep" else run.data.tags[VARIANT_TAG]
            other = found.get(label)
            if other is None or len(run.data.metrics) > len(other.data.metrics):
                found[label] = run
            loser = run if other is not None and found[label] is other else other
            if loser is not None and not loser.data.metrics:
                self._client.delete_run(loser.info.run_id)
        return found

    def _search(self, sweep_id: str) -> Iterator[Any]:
        token: str | None = None
        while token != "":
            page = self._client.search_runs(
                [self.experiment_id], f"tags.`{SWEEP_TAG}` = '{sweep_id}'", page_token=token
            )
            yield from page
            token = page.token or ""

    def _take(
        self,
        label: str,
        found: Any,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        started_at_ms: int | None,
    ) -> None:
        # An empty value would overwrite what an earlier start knew.
        told = {key: value[:_MAX_TAG_CHARS] for key, value in tags.items() if value}
        if found is None:
            run = self._client.create_run(
                self.experiment_id, tags=told, run_name=name, start_time=started_at_ms
            )
            self._ids[label], self.known[label] = run.info.run_id, RunState()
            self._names[label] = name
            self._log_params(label, params)
            return
        self._ids[label], self._names[label] = found.info.run_id, found.info.run_name
        inputs = found.inputs.dataset_inputs if found.inputs else []
        self._datasets[label] = {(it.dataset.name, it.dataset.digest) for it in inputs}
        self.known[label] = RunState(dict(found.data.metrics), int(found.data.tags.get(_STEP, -1)))
        changed = {key: value for key, value in told.items() if found.data.tags.get(key) != value}
        self._set_tags(label, {key: value for key, value in changed.items() if key not in _ONLY_AT_FIRST})

    def _set_tags(self, label: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(key, value[:_MAX_TAG_CHARS]) for key, value in tags.items()]
        for begin in range(0, len(entries), _MAX_TAGS_PER_BATCH):
            part = entries[begin : begin + _MAX_TAGS_PER_BATCH]
            self._client.log_batch(self._ids[label], tags=part, synchronous=True)

    def _log_params(self, label: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entries = [Param(key, value[:_MAX_PARAM_CHARS]) for key, value in params.items()]
        for begin in range(0, len(entries), _MAX_PARAMS_PER_BATCH):
            part = entries[begin : begin + _MAX_PARAMS_PER_BATCH]
            self._client.log_batch(self._ids[label], params=part, synchronous=True)


def view_key(sweep_id: str) -> str:
    """The name of the view that `_view` makes."""
    # A digest, since an id may be as long as its sweep's name, and the address is printed.
    return f"kvmerger-{hashlib.sha256(sweep_id.encode()).hexdigest()[:_VIEW_DIGITS]}"


def _view(sweep_id: str, columns: Sequence[str], ranking: Ranking | None) -> str:
    """The list of a sweep's variants with these metrics, policy and budget as its columns, the best first."""
    shown = [*(f"metrics.`{key}`" for key in columns), "tags.`policy`", "tags.`budget`"]
    # Ordered by a metric, MLflow lists runs flat; by time it would fold the variants under the sweep's own run.
    state = {
        "selectedColumns": shown,
        "orderByKey": f"metrics.`{ranking.key}`" if ranking else "attributes.start_time",
        "orderByAsc": ranking is not None and ranking.is_less_better,
        "searchFilter": f"tags.`{SWEEP_TAG}` = '{sweep_id}' and tags.`{ROLE_TAG}` = 'variant'",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
    }
    return json.dumps(state)


def _profile(dataset: TrackedDataset) -> str:
    return json.dumps({"num_rows": dataset.num_items, "num_contexts": dataset.num_contexts})


def open_runs(uri: str, artifact_dir: Path, sweep: TrackedSweep) -> MlflowRuns:
    """Reach the server, find or make the experiment and the sweep's runs.

    Raises:
        TrackingError: the experiment is in MLflow's bin, or there is none of the id.
    """
    client = connect(uri)
    runs = MlflowRuns(client, _experiment_id(client, uri, artifact_dir, sweep))
    runs.find_or_create(sweep)
    return runs


def find_experiment(client: Any, uri: str, name: str, experiment_id: str | None) -> Any | None:
    """The experiment of the id, or without one that of the name; None if there is none of the name.

    Raises:
        TrackingError: there is none of the id.
    """
    from mlflow.exceptions import MlflowException

    if experiment_id is None:
        return client.get_experiment_by_name(name)
    try:
        return client.get_experiment(experiment_id)
    except MlflowException as error:
        if error.error_code not in _NO_SUCH_ID:
            raise
        raise TrackingError(
            f"there is no experiment with the id {experiment_id!r}{origin_of_id(experiment_id)} at "
            f"{shown_address(uri)!r}; give the id of "
            f"one that is there, or a name in `tracking.experiment`, which is made if need be"
        ) from error


def _experiment_id(client: Any, uri: str, artifact_dir: Path, sweep: TrackedSweep) -> str:
    from mlflow.exceptions import MlflowException

    name = sweep.experiment
    experiment = find_experiment(client, uri, name, sweep.experiment_id)
    if experiment is None:
        location = None if is_http(uri) else artifact_dir.absolute().as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS))
        except MlflowException as error:
            # Another sweep may have made it in between.
            experiment = find_experiment(client, uri, name, None) if error.error_code == _IS_THERE else None
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the experiment {experiment.name!r} is in MLflow's bin; set another `tracking.experiment`, or run "
            f"`mlflow experiments restore -x {experiment.experiment_id}`"
        )
    return str(experiment.experiment_id)
