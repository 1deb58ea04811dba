"""Mirrors a sweep into MLflow; a server that fails can stop a run only before its first unit.

`start` raises when the server cannot be used. After that nothing raises and no unit waits: a thread sends the means so
far, and `finish` sends the final numbers, both only where the server holds something else.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jobs.console.addresses import shown_address
from jobs.console.paths import python
from jobs.results.schema import Row
from jobs.settings.mlflow_variables import origin_of
from jobs.tracking.backlog import PARENT, Backlog
from jobs.tracking.metrics import RunningMeans
from jobs.tracking.mlflow_runs import MlflowRuns, open_runs
from jobs.tracking.sender import Sender
from jobs.tracking.tracker import (
    WORKSPACE,
    NullTracker,
    SweepReport,
    TrackedSweep,
    Tracker,
    TrackingError,
)
from jobs.tracking.uri import check_usable, is_http

logger = logging.getLogger(__name__)

_UI_ADDRESS = "http://127.0.0.1:5000"  # of `mlflow ui` without options


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a server may take. MLflow's own limits (120 s, 7 retries) would hold a start up for minutes.

    `finish_s` bounds the end of a whole run, `hurried_s` that of an interrupted one.
    """

    start_request_s: int = 4
    request_s: int = 30
    finish_s: float = 120.0
    hurried_s: float = 10.0
    retry_pause_s: float = 2.0
    num_tries: int = 3


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
    timeouts: Timeouts = field(default_factory=Timeouts)
    _runs: MlflowRuns = field(init=False)
    _backlog: Backlog = field(init=False)
    _sender: Sender = field(init=False)
    _means: dict[str, RunningMeans] = field(init=False, default_factory=dict)
    _environment: ExitStack = field(init=False, default_factory=ExitStack)

    def start(self, sweep: TrackedSweep) -> None:
        """Reach the server, then open or reopen the sweep's runs.

        Raises:
            TrackingError: the URI cannot be used, with what to do; after at most about 10 s (a new database
                takes some seconds more to be made).
        """
        check_usable(self.uri)
        try:
            with _limits(self.timeouts.start_request_s, num_retries=1):
                self._runs = open_runs(self.uri, self.artifact_dir, sweep)
        except TrackingError:
            raise
        except Exception as error:  # MLflow, requests and SQLAlchemy share no base; all mean "not usable"
            raise TrackingError(
                f"tracking uri {shown_address(self.uri)!r}{origin_of(self.uri)} cannot be used ({_root_of(error)}); "
                f"start the server, correct `tracking.uri`, or run with `tracking: off`"
            ) from error
        # The sender has its own timeouts; until `finish` the environment is the driver's alone.
        self._environment.enter_context(_limits(self.timeouts.request_s, num_retries=0))
        self._backlog = Backlog(self._runs.known)
        self._sender = Sender(self._backlog, self._runs.send, shown_address(self.uri))
        self._sender.start()

    def record_rows(self, rows: Sequence[Row]) -> None:
        """Put the means so far into the backlog."""
        labels = {row["variant"] for row in rows} & self._runs.known.keys()
        for row in rows:
            self._means.setdefault(row["variant"], RunningMeans()).add(row)
            # The sweep's own run only counts: a mean over all variants would say nothing.
            self._means.setdefault(PARENT, RunningMeans(has_numbers=False)).add(row)
        with self._sender.lock:
            for label in (PARENT, *sorted(labels)) if rows else ():
                self._backlog.want(label, self._means[label].readings())
        self._sender.wake()

    def record_links(self, links: Mapping[str, str]) -> None:
        """Put the tags into the backlog, so that they can be followed while the sweep runs."""
        with self._sender.lock:
            self._backlog.want_tags(PARENT, links)
        self._sender.wake()

    def finish(self, report: SweepReport) -> bool:
        """Send what is left, the final numbers, the files and the answer in words; close the runs."""
        limit_s = self.timeouts.hurried_s if report.is_hurried else self.timeouts.finish_s
        deadline_s = time.monotonic() + limit_s
        with self._environment:
            # The thread must have ended: from here on this one sends, and no batch may be sent by both.
            if not self._sender.stop(limit_s):
                return self._gives_up("it does not answer")
            self._want_final(report)
            return self._finish_before(deadline_s, report)

    @property
    def how_to_open(self) -> str:
        """The address of the sweep's own run; before it, where no server is there, the command that starts one."""
        # The workspace in the address: by itself MLflow's page takes experiments for applications that call models.
        page = f"#/experiments/{self._runs.experiment_id}/runs/{self._runs.parent_id}?{WORKSPACE}"
        if is_http(self.uri):
            return f"{shown_address(self.uri).rstrip('/')}/{page}"
        command = shlex.join([python(), "-m", "mlflow", "ui", "--backend-store-uri", shown_address(self.uri)])
        return f"{command}\nthen open {_UI_ADDRESS}/{page}"

    def _want_final(self, report: SweepReport) -> None:
        self._backlog.want(PARENT, report.readings)
        for label, variant in report.variants.items():
            if label in self._runs.known:
                self._backlog.want(label, variant.readings)
                for points in variant.traces:
                    self._backlog.want_trace(label, points)

    def _finish_before(self, deadline_s: float, report: SweepReport) -> bool:
        reason = ""
        for attempt in range(self.timeouts.num_tries):
            if attempt:
                time.sleep(self.timeouts.retry_pause_s * attempt)
            try:
                if not self._sender.deliver(lambda: time.monotonic() < deadline_s):
                    return self._gives_up("it is too slow")
                self._runs.close(report)
            except Exception as error:  # noqa: BLE001 - rows are on disk; a tracker stops no run
                reason = f"{type(error).__name__}: {error}"
                if time.monotonic() > deadline_s:
                    break
            else:
                return True
        return self._gives_up(reason)

    def _gives_up(self, reason: str) -> bool:
        logger.warning("tracking at %s did not take everything (%s)", shown_address(self.uri), reason)
        return False


@contextmanager
def _limits(request_s: int, num_retries: int) -> Iterator[None]:
    """Put our limits for MLflow into the environment where the user has set none, and take them out at the end."""
    # MLflow reads them from there at each request, and has no other way to set them.
    ours = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(request_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(num_retries),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",  # read when MLflow is imported: nobody is told what is evaluated here
    }
    # Who has set one knows the server, and how long it may take.
    added = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _root_of(error: BaseException) -> BaseException:
    """The first error of a chain, such as "Connection refused" under an HTTP client's retries."""
    # requests and urllib3 wrap it several times, and their own words are an address and a pool.
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
