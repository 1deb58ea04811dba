"""Sending the tracker what a results folder holds, from the folder alone: nothing is planned or computed for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.config import Settings
from jobs.final_numbers import final_metrics, flat_params, row_counts, table_markdown
from jobs.result_schema import DONE_STATUSES, ResultError
from jobs.results import ResultStore
from jobs.summary import ResultSummary, summarize
from jobs.tracker import NullTracker, RunStatus, SweepSummary, TrackedSweep
from jobs.tracking import make_tracker

_MARKER = ".delivered"


class UnreachableTracker(NullTracker):
    """Stands in for a server that does not answer: takes nothing and says so, hence a later run delivers."""

    def finish(self, summary: SweepSummary) -> bool:
        """Nothing was delivered."""
        return False

    @property
    def how_to_open(self) -> str:
        """Why there is nothing to open."""
        return "the tracker could not be reached"


def tracked_sweep(settings: Settings, meta: Mapping[str, Any], item_ids: Iterable[str]) -> TrackedSweep:
    """What a tracker is told of a sweep; `item_ids` in the order of its plan, repeats allowed."""
    return TrackedSweep(
        sweep_id=meta["sweep_id"],
        name=settings.name,
        experiment=settings.tracking.experiment or settings.name,
        item_steps={item_id: step for step, item_id in enumerate(dict.fromkeys(item_ids))},
        params=flat_params(settings.model_dump(mode="json")),
        git_commit=meta["git_commit"],
    )


def sweep_summary(status: RunStatus, summary: ResultSummary) -> SweepSummary:
    """What a tracker is told at a sweep's end."""
    return SweepSummary(status, table_markdown(summary), row_counts(summary), final_metrics(summary))


def undelivered(root: Path, uri: str) -> list[tuple[ResultStore, Settings]]:
    """The nights under `root` that should be at `uri` and are not marked so, oldest first."""
    found = []
    for folder in sorted(path.parent for path in root.glob("*/run_meta.json")):
        store = ResultStore(folder)
        settings = _settings_of(store)
        if settings is None or not settings.tracking.enabled or settings.tracking_uri != uri:
            continue
        if not (folder / _MARKER).exists():
            found.append((store, settings))
    return found


def mark_delivered(store: ResultStore, is_delivered: bool) -> None:
    """Remember whether rows, verdict and files of a night are all where they should be."""
    if is_delivered:
        store.write_text(_MARKER, "")
    else:
        (store.root / _MARKER).unlink(missing_ok=True)


def deliver(store: ResultStore, settings: Settings) -> bool:
    """Send a folder's rows and final numbers; whether all arrived. Sending twice adds nothing.

    Raises:
        TrackingError: the tracker cannot be reached.
        ResultError: the folder cannot be read.
    """
    plan, table, meta = store.read_plan() or (), store.read_table(), store.read_run_meta()
    tracker = make_tracker(
        is_enabled=True, uri=settings.tracking_uri, artifact_dir=settings.output_dir.parent / "mlartifacts"
    )
    tracker.start(tracked_sweep(settings, meta, (cell.item_id for cell in plan)))
    wanted = {cell.identity for cell in plan}
    rows = [row for row in table.to_pylist() if row["identity"] in wanted and row["status"] in DONE_STATUSES]
    tracker.record_rows(rows)
    summary = summarize(table, plan)
    return tracker.finish(sweep_summary("KILLED" if summary.num_missing else "FINISHED", summary))


def _settings_of(store: ResultStore) -> Settings | None:
    """The settings a night was run with; None where this version cannot read them any more."""
    try:
        return Settings.model_validate(yaml.safe_load(store.read_settings_text()))
    except (ValidationError, ResultError, yaml.YAMLError):
        return None
