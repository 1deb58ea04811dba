"""Tonight's rows and the baseline's of one task, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.comparability import run_key
from jobs.pairing import Pairs, pair
from jobs.results.grouping import grouped, task_of
from jobs.results.schema import DONE_STATUSES, Row
from jobs.variant_summary import NllScale

TONIGHT, BASELINE = "this night", "the baseline"


@dataclass(frozen=True, slots=True)
class TaskSides:
    """All rows of one task by label. `has_scale`: in the baseline, the full cache beats having no context.

    Only the baseline is asked for its scale: a night that breaks the full cache must not take the verdict away.
    """

    task: str
    tonight: Mapping[str, Sequence[Row]]
    baseline: Mapping[str, Sequence[Row]]
    has_scale: bool

    def pairs(self, label: str, column: str) -> Pairs:
        """Tonight's values of a variant as `policy`, the baseline's as `reference`."""
        tonight, baseline = self.tonight.get(label, ()), self.baseline.get(label, ())
        return pair(tonight, baseline, column, names=(TONIGHT, BASELINE))

    def why_not_measured(self, label: str, column: str) -> str:
        """Why the baseline has no such number of this variant; empty where it has one."""
        rows = [row for row in self.baseline.get(label, ()) if row["status"] in DONE_STATUSES]
        if not rows:
            return "the baseline has no such variant here"
        if any(row[column] is not None for row in rows):
            return ""
        return str(rows[0].get(f"{column}_reason") or f"the baseline has no {column}")


def task_sides(tonight: Sequence[Row], baseline: Sequence[Row]) -> list[TaskSides]:
    """One for each task of tonight, in its order; rows of another model or query mode never meet."""
    keys = {run_key(row) for row in tonight}
    here, there = (
        grouped(rows, task_of) for rows in (tonight, [row for row in baseline if run_key(row) in keys])
    )
    found = []
    for task, rows in here.items():
        by_label = [grouped(of, lambda row: str(row["variant"])) for of in (rows, there.get(task, []))]
        found.append(TaskSides(task, by_label[0], by_label[1], NllScale.of(by_label[1]).is_usable))
    return found
