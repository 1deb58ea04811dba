"""The mean over tasks of one column with its interval, each task weighing the same."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.statistics.intervals import Interval
from evaluators.statistics.macro_average import TaskPairs, macro_difference
from jobs.results.grouping import grouped, task_of
from jobs.results.schema import DONE_STATUSES, Row


def macro_intervals(rows: Sequence[Row], column: str) -> dict[str, Interval]:
    """Label → mean over the tasks of `rows` (one setting), for the variants that have a number on every task.

    The mean is taken as a difference to nothing, so its interval is made as those of differences over tasks are.
    """
    tasks = {task_of(row) for row in rows}
    known = [row for row in rows if row["status"] in DONE_STATUSES and row[column] is not None]
    found = {}
    for label, of_label in grouped(known, lambda row: str(row["variant"])).items():
        by_task = grouped(of_label, task_of)
        if by_task.keys() == tasks:
            found[label] = macro_difference(
                [_task_pairs(group, column) for group in by_task.values()]
            ).interval
    return found


def _task_pairs(rows: Sequence[Row], column: str) -> TaskPairs:
    return TaskPairs([row[column] for row in rows], [0.0] * len(rows), [row["cluster_id"] for row in rows])
