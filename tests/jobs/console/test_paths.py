"""Printed paths work where they are printed."""

import sys
from pathlib import Path

import pytest

from jobs.console.paths import python, shown


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
