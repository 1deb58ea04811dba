"""One night: find the baseline, refuse what cannot be compared, run the sweep, judge it, deliver it, promote it.

Rows are stored before anything else, so a server that is down costs a verdict at most, and the next run sends what the
server has missed. Every night has a folder of its own: in an old one all rows would count as done.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from jobs.analysis.comparability import ComparisonError
from jobs.console.command_line import EXIT_INTERRUPTED
from jobs.console.interrupts import told_interrupts
from jobs.console.paths import shown
from jobs.execution.on_ray.resources import device_of_the_actors, name_of_the_device
from jobs.gate.baseline import Baseline, BaselineError, Baselines, FolderBaseline, PromotedNight
from jobs.gate.files import JSON_NAME, MARKDOWN_NAME, write_gate_files
from jobs.gate.judge import HEAVY_COLUMNS, NightVerdict, check_baseline, gated_labels, judge_night
from jobs.gate.log import NightNames, log_lines
from jobs.gate.preview import contexts_by_task, other_device, planned_facts
from jobs.gate.resolution import resolutions
from jobs.gate.table import verdict_table
from jobs.planning.preparation import Prepared, prepare
from jobs.planning.work import RowKey
from jobs.reporting.dry_run import shown_query_mode
from jobs.results.schema import DONE_STATUSES, ResultError, Row
from jobs.results.store import ResultStore
from jobs.runs.delivery import UnreachableTracker, mark_delivered, undelivered
from jobs.runs.sweep_run import RunResult, SweepRun
from jobs.settings.gate import GateSettings
from jobs.settings.schema import Settings
from jobs.tracking.mirror import mirror_folder
from jobs.tracking.mlflow_baseline import MlflowBaseline
from jobs.tracking.tracker import TrackingError

EXIT_PASS, EXIT_REGRESSION, EXIT_BAD_INPUT, EXIT_TOO_MANY_FAILED, EXIT_INCONCLUSIVE = range(5)
_COMMIT_DIGITS = 7
_MAX_UNRESOLVED_SHOWN = 6
_PERCENT = 100


def night_name(now: datetime.datetime, git_commit: str | None) -> str:
    """The name of a night's folder: date and commit."""
    # With the commit, so that a night that broke off goes on under the same code and starts afresh under another.
    commit, _, changes = (git_commit or "").partition("+")
    parts = [now.strftime("%Y-%m-%d"), commit[:_COMMIT_DIGITS], changes]
    return "-".join(part for part in parts if part)


@dataclass
class Night:
    """Runs one night of `settings` in the folder `root/name`; `command` repeats it, as a person would type it."""

    settings: Settings
    gate: GateSettings
    root: Path
    is_promoted: bool
    command: str
    console: Console
    _baseline: Baseline | None = field(init=False, default=None)
    _down: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self._labels = gated_labels(self.settings, self.gate)
        self._store = ResultStore(self.settings.output_dir)
        self._mirror: MlflowBaseline | None = None
        if self.settings.tracking.enabled:
            tracking = self.settings.tracking
            self._mirror = MlflowBaseline(
                self.settings.tracking_uri,
                tracking.experiment or self.settings.name,
                self.root,
                tracking.experiment_id,
            )
        self._baselines: Baselines = self._mirror or PromotedNight(self.root)
        if self.gate.baseline is not None:
            self._baselines = FolderBaseline(self.gate.baseline)

    def run(self, is_dry: bool) -> int:
        """Run the night and return its exit code; with `is_dry` stop before the run, after all that can be said of it.

        Raises:
            ValueError: one of our own subclasses, for whatever the settings, the baseline or the data cannot do.
        """
        with nullcontext() if is_dry else self._store.held():
            return self._run(is_dry)

    def _run(self, is_dry: bool) -> int:
        if self.is_promoted and isinstance(self._baselines, FolderBaseline):
            self._baselines.promote(self._store)  # refuses; better before the night than after it
        self._find_baseline()
        if not is_dry:
            self._deliver_earlier_nights()
        with self.console.status("reading the model's configuration, tokenizer and items …") as status:
            prepared = prepare(
                self.settings,
                self._store.identities(),
                lambda: device_of_the_actors(self.settings),
                lambda said: status.update(Text(said)),
            )
        # Before the run, since a night that cannot be compared would be spent for nothing.
        self._refuse_other_questions(planned_facts(prepared, self.settings))
        self._say_before(prepared)
        self._say_device(prepared, is_dry)
        if is_dry:
            return EXIT_PASS
        result = self._run_sweep(prepared)
        if result.is_interrupted:
            self._say("interrupted: the rows so far are kept, and the same command goes on")
            return EXIT_INTERRUPTED
        return self._judge(result)

    def _find_baseline(self) -> None:
        try:
            self._baseline = self._baselines.find()
        except TrackingError as error:
            self._down = str(error)
            # The rows seen last still judge tonight; without them the night is kept and judged once the server is up.
            self._baseline = self._mirror.cached() if self._mirror else None
            self._say(f"the server is down: {error}; the night runs all the same, and its rows are kept")
        if self._baseline is None and not self.is_promoted and not self._down:
            raise BaselineError(
                f"there is no baseline yet. `{self.command} --promote` runs the night and makes it the baseline; "
                f"`--baseline DIR` compares with a results folder"
            )

    def _deliver_earlier_nights(self) -> None:
        if self._mirror is None or self._down:
            return
        for store, settings in undelivered(self.root, self.settings.tracking_uri):
            if store.root == self._store.root:
                continue  # tonight's run delivers what is there
            try:
                is_sent, _ = mirror_folder(store, self.settings.tracking_uri, settings.tracking.experiment)
                if is_sent:
                    self._mirror.publish(store, _outcome_of(store))
                mark_delivered(store, is_sent)
                self._say(
                    f"{'delivered' if is_sent else 'not delivered'}: the earlier night {store.root.name}"
                )
            except (TrackingError, ResultError, BaselineError) as error:
                self._say(f"not delivered: the earlier night {store.root.name}: {error}")

    def _refuse_other_questions(self, tonight: Sequence[Row]) -> None:
        """Raise BaselineError if tonight's rows cannot be paired with the baseline; under --promote forget the baseline."""
        if self._baseline is None:
            return
        try:
            check_baseline(self._baseline.rows, tonight, self._labels)
        except ComparisonError as error:
            if not self.is_promoted:
                raise BaselineError(
                    f"{error}\nbaseline: {self._baseline.name} ({self._baseline.origin}); correct the settings, or "
                    f"`{self.command} --promote` makes a night of these settings the baseline"
                ) from error
            self._say(f"{error}\nso there is no verdict, and the night becomes the baseline")
            self._baseline = None

    def _say_before(self, prepared: Prepared) -> None:
        """Print the baseline, what is owed, and which margins cannot be resolved whatever the night brings."""
        plan = prepared.plan
        for said in prepared.warnings:
            self._say(f"warning: {said}")
        if self._baseline is not None:
            self._say(
                f"baseline {self._baseline.name} ({self._baseline.origin}); gated: {', '.join(self._labels)}"
            )
        done = f", {plan.num_done} of them there already" if plan.num_done else ""
        self._say(shown_query_mode(self.settings))
        self._say(f"night {self._store.root.name}: {plan.num_items} items, {plan.num_rows} rows{done}")
        if plan.num_done == plan.num_rows:
            self._say("nothing is left to compute; `--night NAME` starts a night afresh")
        rows = self._baseline.rows if self._baseline else []
        unresolved = [
            it for it in resolutions(contexts_by_task(prepared), rows, self.gate) if not it.is_resolved
        ]
        for it in unresolved[:_MAX_UNRESOLVED_SHOWN]:
            self._say(f"cannot resolve {it}")
        if len(unresolved) > _MAX_UNRESOLVED_SHOWN:
            self._say(f"cannot resolve {len(unresolved) - _MAX_UNRESOLVED_SHOWN} more margins")

    def _say_device(self, prepared: Prepared, is_dry: bool) -> None:
        """Tell before the night what no check of it can measure, because the baseline comes from another device."""
        # Under Ray the device belongs to the actors: only a dry run, which starts none, may look at it from here.
        if self._baseline is None or not (is_dry or self.settings.executor == "inline"):
            return
        device = prepared.model.device
        if told := other_device(self._baseline.rows, device, name_of_the_device(self.settings, device)):
            self._say(told)

    def _run_sweep(self, prepared: Prepared) -> RunResult:
        mark_delivered(self._store, False)  # a crash must leave the next run in doubt
        if not self._down:
            try:
                with told_interrupts():
                    return SweepRun(self.settings, prepared, self._store).run()
            except TrackingError as error:
                self._down = str(error)
                self._say(f"the server is down: {error}; the night runs all the same, and its rows are kept")
        with told_interrupts():
            return SweepRun(self.settings, prepared, self._store, UnreachableTracker()).run()

    def _judge(self, result: RunResult) -> int:
        rows = result.findings.rows_with(*HEAVY_COLUMNS)
        is_delivered = result.is_mirrored
        self._refuse_other_questions(rows)  # what only the machine that ran it knew
        if self._baseline is None:
            code = self._without_verdict(rows, len(result.findings.planned or rows))
        else:
            code, outcome = self._with_verdict(rows, result.findings.planned or (), self._baseline)
            is_delivered = is_delivered and self._publish(outcome)
        # A regression may become the baseline, since that is what was asked; a night full of failures may not.
        if self.is_promoted and code != EXIT_TOO_MANY_FAILED:
            is_delivered = self._promote() and is_delivered
        mark_delivered(self._store, is_delivered)
        if not is_delivered:
            self._say("not all of it reached the tracker: rows are kept, and the next run sends them")
        # A regression keeps its own code: to a scheduler it is the worse news of the two.
        return EXIT_BAD_INPUT if not is_delivered and code in (EXIT_PASS, EXIT_INCONCLUSIVE) else code

    def _without_verdict(self, rows: Sequence[Row], num_planned: int) -> int:
        # Those whose files were taken away meanwhile as well.
        num_failed = num_planned - sum(row["status"] in DONE_STATUSES for row in rows)
        if num_failed * _PERCENT > self.gate.max_failed_percent * num_planned:
            self._say(f"{num_failed} of {num_planned} rows failed or are missing: too many for a baseline")
            return EXIT_TOO_MANY_FAILED
        if self.is_promoted:
            return EXIT_PASS
        self._say(
            "no baseline is known here while the server is down; the same command judges the night once it is up"
        )
        return EXIT_BAD_INPUT

    def _with_verdict(
        self, rows: Sequence[Row], planned: Sequence[RowKey], baseline: Baseline
    ) -> tuple[int, str]:
        verdict = judge_night(baseline.rows, rows, planned, self._labels, self.gate)
        code = exit_code(verdict, self.gate)
        names = NightNames(
            self._store.root.name, baseline.name, baseline.origin, shown(self._store.root / MARKDOWN_NAME)
        )
        lines = log_lines(verdict, names)
        write_gate_files(self._store, verdict, names, self.gate, lines, code)
        for line in lines:
            self._say(line)
        self.console.print()
        self.console.print(verdict_table(verdict, self.console.width))
        return code, verdict.outcome

    def _publish(self, outcome: str) -> bool:
        """Whether the verdict reached the tracker, or there is none; if not, the night counts as undelivered."""
        if self._mirror is None or self._down:
            return self._mirror is None
        try:
            self._mirror.publish(self._store, outcome)
        except (TrackingError, BaselineError) as error:
            self._say(f"the verdict was not delivered: {error}")
            return False
        return True

    def _promote(self) -> bool:
        try:
            self._say(f"promoted: {self._baselines.promote(self._store)} is the baseline now")
        except TrackingError as error:
            self._say(f"not promoted: {error}; run the same command again")
            return False
        return True

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)


def exit_code(verdict: NightVerdict, gate: GateSettings) -> int:
    """The process's exit code, by which a scheduler knows the verdict."""
    match verdict.outcome:
        case "pass":
            return EXIT_PASS
        case "fail":
            return EXIT_REGRESSION
        case "too many failed":
            return EXIT_TOO_MANY_FAILED
    return EXIT_INCONCLUSIVE if gate.inconclusive == "exit_4" else EXIT_PASS


def _outcome_of(store: ResultStore) -> str | None:
    """The verdict that an earlier night's `gate.json` holds; None if it has none."""
    try:
        return str((store.read_json(JSON_NAME) or {})["verdict"])
    except (ResultError, KeyError):
        return None
