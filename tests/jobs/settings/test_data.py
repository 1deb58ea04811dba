"""Where a task's rows are looked for."""

from pathlib import Path

import pytest

from jobs.settings.schema import load_settings
from tests.fakes.settings import MINIMAL, write


def test_data_is_found_beside_the_file_first_and_then_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside / "data", here / "data", here / "only_here"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    path = write(beside, MINIMAL)
    assert load_settings(path, ["tasks.0.data=data"]).tasks[0].data == str(beside / "data")
    assert load_settings(path, ["tasks.0.data=only_here"]).tasks[0].data == str(here / "only_here")
