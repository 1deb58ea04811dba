"""Answers to questions whose references are hidden, as the ZeroSCROLLS leaderboard takes them: a CSV per variant.

Its columns are Task, ID, Prediction (submission/prepare_submission.py of tau-nlp/zero_scrolls@5d99b3d8). The
leaderboard wants all ten tasks with every id of the test set, so what is missing is told.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evaluators.benchmarks.zeroscrolls.tasks import ZEROSCROLLS_TASKS
from jobs.console.whole_file import write_whole
from jobs.results.grouping import Setting, grouped, setting_of
from jobs.results.schema import DONE_STATUSES, ResultError, Row

SUBMISSION_LINK = "https://zero.scrolls-benchmark.com/submission"
_COLUMNS = ("Task", "ID", "Prediction")
_BENCHMARK, _GROUP = "zeroscrolls", "test/"
_NOT_IN_A_NAME = re.compile(r"[^\w.@+=-]+")


@dataclass(frozen=True, slots=True)
class Submission:
    """One variant's file: its name, its text, and how much of the test set it answers."""

    filename: str
    text: str
    num_predictions: int
    missing_tasks: tuple[str, ...]


def write_submissions(rows: Iterable[Row], folder: Path) -> Iterator[str]:
    """Write a file per variant into `folder`; a line about each, and one that says what they are.

    Raises:
        ResultError: no row has hidden answers, or the folder cannot be written.
    """
    submissions = build_submissions(rows)
    for it in submissions:
        path = folder / it.filename
        try:
            # As bytes: the CSV has its line ends already, and Python would turn each into the platform's own.
            write_whole(path, it.text.encode())
        except OSError as error:
            raise ResultError(f"cannot write {path}: {error}; name another folder") from error
        missing = f"; missing for the leaderboard: {', '.join(it.missing_tasks)}" if it.missing_tasks else ""
        yield f"{path}: {it.num_predictions} predictions{missing}"
    yield (
        "The answers of ZeroSCROLLS' test set are hidden, so these predictions have no score here; upload a file with "
        f"all ten tasks, each with all of its ids, at {SUBMISSION_LINK}."
    )


def build_submissions(rows: Iterable[Row]) -> list[Submission]:
    """One submission per setting and variant. Raises ResultError when no finished row has hidden answers."""
    hidden = [row for row in rows if _is_hidden(row) and row["status"] in DONE_STATUSES]
    if not hidden:
        raise ResultError(
            "no finished row of this folder has hidden answers, so there is nothing to submit; "
            "run zeroscrolls tasks with `split: test`"
        )
    groups = grouped(hidden, lambda row: (setting_of(row), row["variant"]))
    # Two settings share their labels, and without the setting in its name one file would overwrite the other.
    is_one_setting = len({setting for setting, _ in groups}) == 1
    return [
        _submission(label if is_one_setting else f"{label}.{_words(setting)}", group)
        for (setting, label), group in groups.items()
    ]


def _submission(name: str, rows: list[Row]) -> Submission:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(_COLUMNS)
    order = list(ZEROSCROLLS_TASKS)
    # The official order of tasks, so that two files can be compared line by line; sorting keeps the rows' own within one.
    for row in sorted(rows, key=lambda row: order.index(_task(row))):
        # Our item ids are longer than the leaderboard's, which the item's metadata keeps.
        official_id = json.loads(row["item_metadata"])["official_id"]
        writer.writerow((_task(row), official_id, row["prediction"]))
    missing = tuple(task for task in order if task not in {_task(row) for row in rows})
    return Submission(f"{_NOT_IN_A_NAME.sub('_', name)}.csv", sink.getvalue(), len(rows), missing)


def _words(setting: Setting) -> str:
    return f"{setting.model_name}.{setting.query_mode}.{setting.execution}"


def _is_hidden(row: Row) -> bool:
    return row["benchmark"] == _BENCHMARK and row["task"].startswith(_GROUP)


def _task(row: Row) -> str:
    return str(row["task"].removeprefix(_GROUP))
