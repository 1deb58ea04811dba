"""Around a sweep's rows: one driver at a time, no 0 without all rows, one sweep in MLflow whatever dies and when."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.results.store import ResultStore
from jobs.results.writer_lock import LOCK_NAME
from jobs.runs import sweep_run
from jobs.sweep import main
from jobs.tracking import mlflow_runs
from tests.fakes.sweeps import save_data, save_settings, save_tiny_model
from tests.servers.tracked_sweeps import runs_of

NUM_ITEMS = 2
_TRY = "import sys\nfrom jobs.sweep import main\nsys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Path:
    return save_settings(tmp_path, model, save_data(tmp_path / "data", NUM_ITEMS))


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def during_the_sweep(monkeypatch: pytest.MonkeyPatch, act: Callable[[ResultStore], None]) -> None:
    """Do something after the first unit has been stored."""
    keep, is_done = sweep_run.SweepRun._keep, []

    def keep_and_act(self: Any, unit: Any, rows: Any) -> None:
        keep(self, unit, rows)
        if not is_done:
            is_done.append(True)
            act(self._store)

    monkeypatch.setattr(sweep_run.SweepRun, "_keep", keep_and_act)


def test_rows_that_were_taken_away_meanwhile_are_no_success(
    config: Path, store: ResultStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    during_the_sweep(monkeypatch, lambda it: next(it.rows_folder.glob("*.parquet")).unlink())
    assert main([str(config)]) == 3
    assert "rows are missing" in capsys.readouterr().out
    monkeypatch.undo()
    assert main([str(config)]) == 0
    assert not (store.root / LOCK_NAME).exists()


def test_a_second_driver_ends_with_2_and_changes_nothing(
    config: Path, store: ResultStore, monkeypatch: pytest.MonkeyPatch, repo_root: Path
) -> None:
    ended: list[subprocess.CompletedProcess[str]] = []

    def drive(_: ResultStore) -> None:
        for words in ([], ["--set", "seed=1"], ["--dry-run"]):
            command = [sys.executable, "-c", _TRY, str(config), *words]
            ended.append(subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False))

    during_the_sweep(monkeypatch, drive)
    assert main([str(config)]) == 0
    assert [it.returncode for it in ended] == [2, 2, 0]
    for told in (it.stderr for it in ended[:2]):
        assert f"process {os.getpid()} on " in told and "Traceback" not in told
    assert store.read_table().num_rows == NUM_ITEMS * 4


@pytest.mark.parametrize("command", ["rescore", "mirror"])
def test_who_would_write_beside_a_driver_is_refused(
    config: Path,
    store: ResultStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    codes: list[int] = []
    words = {"rescore": ["report", str(store.root), "--rescore"], "mirror": ["mirror", str(store.root)]}[
        command
    ]
    during_the_sweep(monkeypatch, lambda _: codes.append(main(words)))
    assert main([str(config)]) == 0
    assert codes == [2]
    assert "is being written by another process" in capsys.readouterr().err


def test_a_start_that_is_refused_leaves_no_folder(config: Path, store: ResultStore) -> None:
    assert main([str(config), "--set", "tasks.0.data=/nowhere"]) == 2
    assert not store.root.exists()


@pytest.mark.parametrize("dies_after", [1, 3])
def test_a_driver_that_dies_while_its_runs_are_made_goes_on_in_the_same_sweep(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_after: int
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracked = [str(config), "--set", f"tracking={{uri: '{uri}'}}"]
    take, num_taken = mlflow_runs.MlflowRuns._take, [0]

    def take_and_die(self: Any, *arguments: Any) -> None:
        take(self, *arguments)
        num_taken[0] += 1
        if num_taken[0] == dies_after:
            raise KeyboardInterrupt  # as little is done after it as after a kill: the tracker has not started

    monkeypatch.setattr(mlflow_runs.MlflowRuns, "_take", take_and_die)
    assert main(tracked) == 130
    monkeypatch.undo()
    assert main(tracked) == 0
    assert len(runs_of(uri)) == 5  # which also fails where two runs are of one variant


def test_a_page_that_is_a_link_is_not_written_through(
    config: Path, store: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "theirs.html"
    theirs.write_text("mine")
    store.root.mkdir()
    (store.root / "report.html").symlink_to(theirs)
    assert main([str(config)]) == 0
    assert theirs.read_text() == "mine"
    assert "it is a link, through which nothing is written" in capsys.readouterr().out.replace("\n", " ")
    assert main(["report", str(store.root), "--html"]) == 2
    assert theirs.read_text() == "mine"
