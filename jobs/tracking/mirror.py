"""A results folder goes to MLflow without running anything; doing it twice changes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.analysis.folder.findings import Findings
from jobs.console.addresses import shown_address, sqlite_uri
from jobs.reporting.page import render_page
from jobs.results.store import ResultStore
from jobs.settings.mlflow_variables import URI, value_of
from jobs.tracking.content import sweep_of_folder, sweep_report
from jobs.tracking.mlflow_tracker import make_tracker
from jobs.tracking.tracker import RunStatus, TrackingError


def mirror_folder(store: ResultStore, uri: str | None, experiment: str | None) -> tuple[bool, str]:
    """Deliver the folder. Returns whether all of it arrived, and how to open the runs.

    Raises:
        ResultError: it is not the folder of a sweep, or it cannot be read.
        TrackingError: the server cannot be used.
    """
    store.check_exists()
    with store.kept_still():  # or points of a sweep that runs, or of a second mirror, would be there twice
        return _mirror(store, uri, experiment)


def _mirror(store: ResultStore, uri: str | None, experiment: str | None) -> tuple[bool, str]:
    findings = Findings.read(store)
    sweep = sweep_of_folder(findings, store.root)
    tracker = make_tracker(
        is_enabled=True,
        uri=uri or _uri_of(findings.settings, store.root),
        artifact_dir=store.root.absolute().parent / "mlartifacts",
    )
    with tempfile.TemporaryDirectory(prefix="kvmerger-mirror-") as folder:
        status: RunStatus = "KILLED" if findings.summary.num_missing else "FINISHED"
        # Made before the runs are opened: a folder that cannot be reported must not leave empty runs on the server.
        report = sweep_report(findings, status, render_page(findings), Path(folder))
        tracker.start(replace(sweep, experiment=experiment, experiment_id=None) if experiment else sweep)
        return tracker.finish(report), tracker.how_to_open


def _uri_of(settings: Mapping[str, Any], root: Path) -> str:
    tracking = settings.get("tracking") or {}
    if not tracking.get("enabled", True):
        raise TrackingError("this sweep ran with `tracking: off`; name a server or a database with --uri")
    stored, of_variable = tracking.get("uri"), value_of(URI)
    # Stored without its password, which the variable may still have.
    if of_variable and stored == shown_address(of_variable):
        return of_variable
    return stored or of_variable or sqlite_uri(root.absolute().parent / "mlflow.db")
