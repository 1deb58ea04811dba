"""One run of a sweep: rows are stored before anything else sees them, and a summary is made however the run ends.

A tracker can stop a run only before its first unit. An interrupt leaves the finished rows, and the same command goes on.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.analysis.folder.findings import Findings
from jobs.analysis.summary import ResultSummary
from jobs.console.addresses import hidden_in
from jobs.console.paths import job_submission
from jobs.execution.run_events import ClusterJoined, OnEvent, OnRows, RunEvent
from jobs.planning.identity import unit_id
from jobs.planning.preparation import Prepared
from jobs.planning.rows import PlannedRow
from jobs.planning.work import WorkUnit
from jobs.reporting.page import DEFAULT_NAME, ReportPage, render_page, write_page
from jobs.results.provenance import describe_run, with_sweep_ids
from jobs.results.rows import Failure, RowMaker, RunContext
from jobs.results.schema import DONE_STATUSES, ResultError, Row
from jobs.results.store import ResultStore
from jobs.runs.progress import ProgressView
from jobs.settings.schema import Settings
from jobs.tracking.content import links_of, shared_tags, sweep_report, tracked_sweep, tracked_variant
from jobs.tracking.mlflow_tracker import make_tracker
from jobs.tracking.tracker import RunStatus, TrackedSweep, Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended, and what its folder says now. `page` is the report, or why there is none."""

    findings: Findings
    page: Path | ResultError | None
    is_interrupted: bool
    is_mirrored: bool
    how_to_open: str

    @property
    def summary(self) -> ResultSummary:
        """What the folder says, as tables."""
        return self.findings.summary


class RunUnits(Protocol):
    """The signature that every executor has."""

    def __call__(
        self,
        units: Sequence[WorkUnit],
        settings: Settings,
        context: RunContext,
        *,
        on_rows: OnRows,
        on_event: OnEvent,
    ) -> None: ...


class SweepRun:
    """Runs what a plan owes and keeps store, tracker and progress in step. One writer: this process."""

    def __init__(
        self, settings: Settings, prepared: Prepared, store: ResultStore, tracker: Tracker | None = None
    ) -> None:
        """`tracker` stands in for the one that the settings ask for."""
        self._settings = settings
        self._prepared = prepared
        self._store = store
        model = prepared.model
        setting = (model.name, model.revision, model.dtype, settings.query_mode.value, settings.execution)
        self._previous_meta = store.read_run_meta()
        self._meta = describe_run(settings.name, setting, self._previous_meta, prepared.read)
        self._tracker: Tracker = tracker or make_tracker(
            is_enabled=settings.tracking.enabled,
            uri=settings.tracking_uri,
            artifact_dir=settings.output_dir.parent / "mlartifacts",
        )

    def run(self) -> RunResult:
        """Compute what is owed; an interrupt ends it early.

        Raises:
            TrackingError: the tracker cannot be reached; nothing has been done.
            ResultError, ModelError, RayStartError, ResourcesError: the run could not go on; finished rows are kept.
        """
        # Before the tracker hears of the sweep: whatever dies while its runs are being made, the next start finds them again.
        self._store.write_run_meta(with_sweep_ids(self._previous_meta, self._meta))
        # Before the rest, since it may raise: a sweep that cannot be tracked as asked has then changed nothing else.
        self._tracker.start(self._tracked_sweep())
        self._store.write_settings(hidden_in(self._settings.model_dump(mode="json")))
        self._store.write_run_meta(self._meta)
        self._store.write_plan(planned.key for planned in self._prepared.plan.rows)
        status: RunStatus = "FAILED"  # whatever else is raised below passes through `finally` with it
        try:
            self._record_earlier_rows()
            self._fail_impossible()
            self._execute()
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
        finally:
            result = self._finish(status)
        return result

    def _execute(self) -> None:
        units = self._prepared.plan.units
        if not units:
            return
        run_units = _executor(self._settings.executor)
        with ProgressView(units) as progress:
            settings = self._prepared.settled(self._settings)

            def on_event(event: RunEvent) -> None:
                if isinstance(event, ClusterJoined):
                    self._note_job(event)
                progress.on_event(event)

            run_units(units, settings, self._context(), on_rows=self._keep, on_event=on_event)

    def _note_job(self, event: ClusterJoined) -> None:
        """Write down in which Ray job the run is, and tell the tracker at once: a sweep may run for days."""
        ray = {"job_id": event.job_id, "submission_id": job_submission(), "dashboard": event.dashboard}
        self._meta = {**self._meta, "ray": ray}
        self._store.write_run_meta(self._meta)
        self._tracker.record_links(links_of(self._meta))

    def _keep(self, unit: WorkUnit, rows: list[Row]) -> None:
        # In this order: what the tracker shows must be on disk, whatever happens next.
        self._store.write_unit(unit.unit_id, rows)
        self._tracker.record_rows(rows)

    def _fail_impossible(self) -> None:
        """Write the rows that the plan found impossible as failed ones, a file per item."""
        by_item: dict[str, list[PlannedRow]] = {}
        for planned in self._prepared.plan.impossible:
            by_item.setdefault(planned.key.item_id, []).append(planned)
        for its_rows in by_item.values():
            rows_id = unit_id(planned.key.identity for planned in its_rows)
            maker = RowMaker(
                self._context(), rows_id, self._settings.execution, time.time(), self._prepared.model
            )
            rows = [_impossible_row(maker, planned) for planned in its_rows]
            self._store.write_unit(rows_id, rows)
            self._tracker.record_rows(rows)

    def _record_earlier_rows(self) -> None:
        """Tell the tracker of rows that earlier runs finished, so that its means are over all of them."""
        if self._prepared.plan.num_done:
            rows = Findings.read(self._store).rows_with("seconds")
            self._tracker.record_rows([row for row in rows if row["status"] in DONE_STATUSES])

    def _finish(self, status: RunStatus) -> RunResult:
        """Tell the tracker what the folder says now."""
        # Read anew rather than remembered: rows of earlier runs count as well, and the folder is what a report reads.
        findings = Findings.read(self._store)
        is_interrupted = status == "KILLED"
        # Figures take seconds, and who pressed Ctrl-C waits for the prompt.
        page = None if is_interrupted else render_page(findings)
        written = None if page is None else _write(page.html, self._store.root / DEFAULT_NAME)
        is_mirrored = not self._settings.tracking.enabled or self._mirror(findings, status, page)
        return RunResult(findings, written, is_interrupted, is_mirrored, self._tracker.how_to_open)

    def _mirror(self, findings: Findings, status: RunStatus, page: ReportPage | None) -> bool:
        try:
            with tempfile.TemporaryDirectory(prefix="kvmerger-mirror-") as folder:
                return self._tracker.finish(sweep_report(findings, status, page, Path(folder)))
        except OSError as error:  # no room for copies of what is stored already
            logger.warning("nothing more was told to the tracker: %s", error)
            return False

    def _context(self) -> RunContext:
        return RunContext(
            sweep=self._settings.name,
            model=self._prepared.model.name,
            model_revision=self._prepared.model.revision,
            query_mode=self._settings.query_mode.value,
            seed=self._settings.seed,
            versions=self._meta["versions"],
            policy_versions=self._prepared.policy_versions,
        )

    def _tracked_sweep(self) -> TrackedSweep:
        model = self._prepared.model
        specs = {it.key.label: (it.spec, it.policy_version) for it in self._prepared.plan.rows}
        variants = {
            label: tracked_variant(spec.policy, spec.canonical()["budget"], version, dict(spec.params))
            for label, (spec, version) in specs.items()
        }
        shared = shared_tags(
            mode=self._settings.query_mode.value,
            execution=self._settings.execution,
            model=model.name,
            model_revision=model.revision,
            git_commit=self._meta["git_commit"],
        )
        return tracked_sweep(self._meta, self._settings.model_dump(mode="json"), variants, shared)


def _write(page: str, path: Path) -> Path | ResultError:
    """The page's path, or the error that kept it from being written."""
    # Returned, not raised: the rows are there, and a full disk under the page is no reason to fail the sweep.
    try:
        return write_page(page, path)
    except ResultError as error:
        return error


def _executor(name: str) -> RunUnits:
    """The executor of that name."""
    # Imported only when asked for: inline works where Ray is not installed.
    if name == "inline":
        from jobs.execution import inline

        return inline.run_units
    from jobs.execution.on_ray import controller

    return controller.run_units


def _impossible_row(maker: RowMaker, planned: PlannedRow) -> Row:
    error_type = "PromptError" if planned.planned is None else "BudgetError"
    failure = Failure("plan", error_type, str(planned.impossible_reason), "")
    return maker.failed(planned.key, planned.item, planned.spec, failure)
