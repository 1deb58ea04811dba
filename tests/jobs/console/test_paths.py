"""Printed paths work where they are printed."""

import json
import sys
from pathlib import Path

import pytest

from jobs.console.paths import JOB_VARIABLE, called, command_line, job_submission, python, shown


def test_a_path_inside_the_current_folder_is_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "results" / "demo") == "results/demo"
    assert shown(Path("results")) == "results"
    assert shown(tmp_path.parent / "elsewhere") == str(tmp_path.parent / "elsewhere")


def test_python_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(sys.executable).parent)
    assert python() == Path(sys.executable).name
    monkeypatch.chdir("/")
    assert Path("/", python()) == Path(sys.executable)


def test_in_a_job_a_path_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    assert shown(Path("results")) == str(tmp_path / "results")


def test_the_program_is_called_again_as_it_was(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repo_root)
    monkeypatch.setattr(sys, "argv", ["jobs/sweep.py"])
    assert called("ls") == [python(), "jobs/sweep.py", "ls"]
    monkeypatch.chdir(tmp_path)
    assert called("ls")[1:] == [str(repo_root / "jobs" / "sweep.py"), "ls"]


@pytest.mark.parametrize("is_on_path", [True, False])
def test_an_installed_program_is_called_by_its_name_where_a_shell_finds_it(
    is_on_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "kvmerger"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", str(program.parent) if is_on_path else "/nowhere")
    expected = "kvmerger" if is_on_path else str(program).removeprefix("/")
    assert command_line("report", "my results") == f"{expected} report 'my results'"


def test_the_submission_is_what_ray_calls_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    assert job_submission() is None
    # As Ray's job supervisor writes it.
    told = {"runtime_env": {}, "metadata": {"job_submission_id": "night-1", "job_name": "night-1"}}
    monkeypatch.setenv(JOB_VARIABLE, json.dumps(told))
    assert job_submission() == "night-1"
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    assert job_submission() is None
