"""A submission holds every hidden row of a variant, in the official columns, and says what is missing."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from evaluators.benchmarks.zeroscrolls.tasks import ZEROSCROLLS_TASKS
from jobs.report import main
from jobs.reporting.submission import build_submissions
from jobs.results.schema import FAILED, ResultError, Row
from jobs.results.store import ResultStore
from tests.fakes.rows import make_row


def hidden_row(task: str, number: int, variant: str = "full", **values: Any) -> Row:
    columns = {
        "benchmark": "zeroscrolls",
        "task": f"test/{task}",
        "variant": variant,
        "prediction": f'an answer, "quoted",\non two lines {number}',
        "item_metadata": json.dumps({"official_id": f"id {number}"}),
    }
    return make_row(f"{task}/{number}/{variant}", **(columns | values))


def test_the_file_reads_back_as_the_official_columns() -> None:
    rows = [hidden_row(task, number) for task in reversed(ZEROSCROLLS_TASKS) for number in (1, 2)]
    (submission,) = build_submissions(rows)
    read = list(csv.DictReader(io.StringIO(submission.text)))
    assert list(read[0]) == ["Task", "ID", "Prediction"]
    assert [row["Task"] for row in read[::2]] == list(ZEROSCROLLS_TASKS)
    assert read[1]["ID"] == "id 2" and read[1]["Prediction"] == rows[1]["prediction"]
    assert (submission.filename, submission.num_predictions, submission.missing_tasks) == ("full.csv", 20, ())


def test_variants_and_settings_have_files_of_their_own() -> None:
    rows = [
        hidden_row("qasper", 1, variant, query_mode=mode, model="/data/m")
        for variant in ("full", "a/b@0.5")
        for mode in ("aware", "agnostic")
    ]
    names = {submission.filename for submission in build_submissions(rows)}
    assert len(names) == 4 and "a_b@0.5.m.aware.execution.csv" in names


def test_scored_and_failed_rows_are_not_submitted() -> None:
    failure = {"status": FAILED, "failure_phase": "engine", "failure_type": "MyError"}
    rows = [hidden_row("qasper", 1) | {"task": "qasper"}, hidden_row("qasper", 2, **failure)]
    with pytest.raises(ResultError, match="split: test"):
        build_submissions(rows)
    (submission,) = build_submissions([*rows, hidden_row("qasper", 3)])
    assert submission.num_predictions == 1


def test_the_command_writes_the_files_and_says_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ResultStore(tmp_path).write_unit("u1", [hidden_row("qasper", 1), hidden_row("qasper", 2, "knorm@0.5")])
    assert main([str(tmp_path), "--submission", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["full.csv", "knorm@0.5.csv"]
    assert "1 predictions; missing for the leaderboard: gov_report" in shown
    assert "have no score here" in shown
