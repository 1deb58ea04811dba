"""The baseline in MLflow: the one sweep of the experiment tagged `baseline = true`, its rows kept in a local cache.

A promotion tags the new run first and takes the tag off the old ones after that, so a crash in between leaves two of them,
of which the one promoted later counts. No crash leaves an experiment without its baseline.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jobs.console.addresses import shown_address
from jobs.gate.baseline import Baseline, BaselineError, rows_of
from jobs.results.schema import ResultError
from jobs.results.store import ResultStore
from jobs.settings.mlflow_variables import origin_of
from jobs.tracking.connection import connect
from jobs.tracking.files import ROWS
from jobs.tracking.mlflow_runs import ROLE_TAG, SWEEP_TAG, find_experiment
from jobs.tracking.tracker import TrackingError
from jobs.tracking.uri import check_usable, is_absent_file

TAG, SINCE_TAG, GATE_TAG = "baseline", "baseline_since_s", "gate"
_CACHE, _NEWEST = ".baselines", "newest.json"
_WAITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # rows may be some MB
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class MlflowBaseline:
    """Reads and sets the tag in `experiment` at `uri`; rows are cached under `root`, where the nights are.

    `experiment_id` stands for the experiment, whatever its name.
    """

    uri: str
    experiment: str
    root: Path
    experiment_id: str | None = None

    def find(self) -> Baseline | None:
        """The tagged run's rows, from the cache when they were downloaded before. Makes no database where there is none."""
        if is_absent_file(self.uri):
            return None
        return self._asked(self._find)

    def cached(self) -> Baseline | None:
        """The baseline that was found last, for a night on which the server does not answer."""
        try:
            newest = ResultStore(self.root / _CACHE).read_json(_NEWEST) or {}
            run_id, name = str(newest["run_id"]), str(newest["name"])
        except (ResultError, KeyError):
            return None
        if not (self._folder(run_id) / ROWS).is_file():
            return None
        return Baseline(name, f"MLflow run {run_id}, as last seen", rows_of(self._folder(run_id)))

    def promote(self, store: ResultStore) -> str:
        """Tag the night's sweep, then take the tag off every other."""
        return self._asked(lambda client: self._promote(client, store))

    def publish(self, store: ResultStore, outcome: str | None) -> None:
        """Give the night's sweep the gate's files, and its verdict as a tag."""
        self._asked(lambda client: self._publish(client, store, outcome))

    def _find(self, client: Any) -> Baseline | None:
        # A promotion that broke off may have left two: the one promoted later counts.
        tagged = sorted(self._runs(client, f"tags.`{TAG}` = 'true'"), key=_since_s)
        if not tagged:
            return None
        run = tagged[-1]
        run_id, name = run.info.run_id, run.info.run_name
        folder = self._folder(run_id)
        if not (folder / ROWS).is_file():
            self._download(client, run_id, folder)
        rows = rows_of(folder)
        ResultStore(self.root / _CACHE).write_json(_NEWEST, {"run_id": run_id, "name": name})
        return Baseline(name, f"MLflow run {run_id}", rows)

    def _download(self, client: Any, run_id: str, folder: Path) -> None:
        """Put the run's rows into the cache's `folder`."""
        if ROWS not in {it.path for it in client.list_artifacts(run_id, "rows")}:
            raise BaselineError(
                f"the baseline, run {run_id} of {self._where}, has no artifact {ROWS}; promote another run"
            )
        # Into a folder of its own first, then renamed: a file that is there is taken for whole from then on.
        arriving = folder.with_name(f"{run_id}.arriving")
        shutil.rmtree(arriving, ignore_errors=True)
        arriving.mkdir(parents=True)
        downloaded = Path(client.download_artifacts(run_id, ROWS, str(arriving)))
        if downloaded != arriving / ROWS:  # where it lands depends on who keeps the artifacts
            (arriving / ROWS).parent.mkdir()
            downloaded.replace(arriving / ROWS)
        shutil.rmtree(folder, ignore_errors=True)
        arriving.replace(folder)

    def _promote(self, client: Any, store: ResultStore) -> str:
        run = self._run_of(client, store)
        # The new tag before the old ones go, and its time before the tag: whatever breaks off leaves a baseline.
        client.set_tag(run.info.run_id, SINCE_TAG, f"{time.time():.3f}")
        client.set_tag(run.info.run_id, TAG, "true")
        for other in self._runs(client, f"tags.`{TAG}` = 'true'"):
            if other.info.run_id != run.info.run_id:
                client.set_tag(other.info.run_id, TAG, "false")
        return f"{run.info.run_name} (MLflow run {run.info.run_id})"

    def _publish(self, client: Any, store: ResultStore, outcome: str | None) -> None:
        run = self._run_of(client, store)
        for name in ("gate.json", "gate.md"):
            if (store.root / name).is_file():
                client.log_artifact(run.info.run_id, str(store.root / name))
        if outcome is not None:
            client.set_tag(run.info.run_id, GATE_TAG, outcome)

    @property
    def _where(self) -> str:
        by_id = f"the experiment with the id {self.experiment_id!r}"
        return f"the experiment {self.experiment!r}" if self.experiment_id is None else by_id

    def _run_of(self, client: Any, store: ResultStore) -> Any:
        sweep_id = store.read_run_meta().get("sweep_id", "")
        for run in self._runs(client, f"tags.`{SWEEP_TAG}` = '{sweep_id}'"):
            return run
        raise BaselineError(
            f"{store.root.name} is not in {self._where}; run the same command again, which sends it"
        )

    def _runs(self, client: Any, condition: str) -> Iterator[Any]:
        """Sweeps' own runs, newest first; their variants' are children."""
        experiment = find_experiment(client, self.uri, self.experiment, self.experiment_id)
        if experiment is None:
            return
        token: str | None = None
        # MLflow says None for "no further page", which asked again would be the first one; "" is ours for the end.
        while token != "":
            page = client.search_runs(
                [experiment.experiment_id], f"{condition} and tags.`{ROLE_TAG}` = 'sweep'", page_token=token
            )
            yield from page
            token = page.token or ""

    def _asked(self, question: Callable[[Any], _Result]) -> _Result:
        """The answer to `question`; TrackingError for whatever kept the server from answering."""
        check_usable(self.uri)
        try:
            with _short_waits():
                return question(connect(self.uri))
        except ValueError as error:
            # Ours say what to do and pass; any other ValueError is MLflow's way to say that something is amiss.
            if isinstance(error, TrackingError | BaselineError) or type(error).__module__.startswith("jobs."):
                raise
            raise self._unreachable(error) from error
        except Exception as error:  # MLflow, requests and SQLAlchemy share no base; all mean "not usable"
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> TrackingError:
        return TrackingError(
            f"tracking uri {shown_address(self.uri)!r}{origin_of(self.uri)} cannot be used "
            f"({type(error).__name__}: {error})"
        )

    def _folder(self, run_id: str) -> Path:
        return self.root / _CACHE / run_id


@contextmanager
def _short_waits() -> Iterator[None]:
    """Shorter timeouts and fewer retries for MLflow, save those that the user has set."""
    # With its own, MLflow would try for minutes before it says that a server is down.
    ours = {name: value for name, value in _WAITS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _since_s(run: Any) -> float:
    return float(run.data.tags.get(SINCE_TAG, 0.0))
