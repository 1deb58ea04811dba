"""Scores computed again from stored text, without model and tokenizer; the earlier rows stay where they are.

The new rows keep their identities and are newer, so that readers take them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from evaluators import scoring
from jobs.results.grouping import grouped, task_of
from jobs.results.rows import score_columns
from jobs.results.schema import DONE_STATUSES, Row
from jobs.results.store import ResultStore

_SUFFIX = "-rescored"
_SAME = 1e-12  # sums of floats may differ in the last bit on another machine
_CLOCK_STEP_S = 0.001


@dataclass(frozen=True, slots=True)
class TaskChange:
    """What scoring again did to one task; scores are 0 to 1, and means are over the rows scored again.

    `reasons` says, each once, why a row keeps its old score.
    """

    task: str
    num_scored: int
    num_changed: int
    mean_before: float | None
    mean_after: float | None
    largest_change: float
    num_kept: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rescored:
    """The rows that scoring has changed, under their new unit ids, and what became of each task."""

    rows: tuple[Row, ...]
    tasks: tuple[TaskChange, ...]


def rescore_results(store: ResultStore, now_s: float) -> tuple[TaskChange, ...]:
    """Score everything in a folder again and add the rows that differ; `now_s` is Unix time.

    Raises:
        ResultError: a file cannot be read or written.
    """
    rows = store.read_table().to_pylist()
    rescored = rescore(rows, now_s)
    new = {row["identity"]: row for row in rescored.rows}
    for unit_id, changed in grouped(rescored.rows, lambda row: row["unit_id"]).items():
        # Of an earlier re-scoring, the rows that are still right share the file.
        kept = [row for row in rows if row["unit_id"] == unit_id and row["identity"] not in new]
        store.write_unit(unit_id, changed + kept)
    return rescored.tasks


def rescore(rows: Iterable[Row], now_s: float) -> Rescored:
    """Score all finished rows again, from prediction, answers, class names and metric alone."""
    new_rows: list[Row] = []
    changes = []
    finished = [row for row in rows if row["status"] in DONE_STATUSES]
    for task, group in grouped(finished, task_of).items():
        outcomes = [(row, _new_columns(row)) for row in group]
        new_rows += [
            _renewed(row, new, now_s) for row, new in outcomes if isinstance(new, dict) and _differs(row, new)
        ]
        changes.append(_change(task, outcomes))
    return Rescored(tuple(new_rows), tuple(changes))


def change_lines(tasks: Sequence[TaskChange]) -> Iterator[str]:
    """A line per task, scores times 100, and one for each reason why rows keep their score."""
    for it in tasks:
        line = f"{it.task}: {it.num_scored} rows scored again, {it.num_changed} changed"
        if it.num_changed and it.mean_before is not None and it.mean_after is not None:
            line += (
                f"; mean {100 * it.mean_before:.2f} before, {100 * it.mean_after:.2f} now, "
                f"largest change of a row {100 * it.largest_change:.2f}"
            )
        yield line
        if it.num_kept:
            yield f"  {it.num_kept} rows keep what they have: {'; '.join(it.reasons)}"


def _new_columns(row: Row) -> Row | str:
    """The columns of the new score, or why there is none."""
    if not row["answers"]:
        return row["score_reason"] or "no answer to score against"
    if row["prediction"] is None or row["metric"] is None:
        return "the row holds no prediction or no metric"
    try:
        if row["all_classes"] is None and scoring.uses_classes(row["metric"]):
            return (
                f"{row['metric']} needs class names, which rows of that time did not hold; run the sweep anew"
            )
        return score_columns(row["metric"], row["prediction"], row["answers"], row["all_classes"] or ())
    # Metrics are plug-ins, and one may be gone: that costs its rows, not the others.
    except Exception as error:  # noqa: BLE001
        return f"metric {row['metric']!r} raised {type(error).__name__}: {error}"


def _differs(row: Row, new: Row) -> bool:
    return _score_differs(row, new) or any(row[name] != new[name] for name in ("scorer", "score_parts"))


def _score_differs(row: Row, new: Row) -> bool:
    before, after = row["score"], new["score"]
    # None is "not scored": a score that comes or goes is a change, and no number stands for it.
    if before is None or after is None:
        return before is not after
    return abs(before - after) > _SAME


def _renewed(row: Row, new: Row, now_s: float) -> Row:
    # A file of its own: a run that computes the unit again replaces the unit's file, not this one.
    unit_id = row["unit_id"] if row["unit_id"].endswith(_SUFFIX) else row["unit_id"] + _SUFFIX
    # Newer in any case, or readers would take the old row: the clock that stored it may be ahead of ours.
    created_at_s = max(now_s, row["created_at_s"] + _CLOCK_STEP_S)
    return {**row, **new, "unit_id": unit_id, "created_at_s": created_at_s}


def _change(task: str, outcomes: Sequence[tuple[Row, Row | str]]) -> TaskChange:
    scored = [(row, new) for row, new in outcomes if isinstance(new, dict)]
    reasons = [new for _, new in outcomes if isinstance(new, str)]
    before = [row["score"] for row, _ in scored if row["score"] is not None]
    after = [new["score"] for _, new in scored if new["score"] is not None]
    steps = [abs((new["score"] or 0.0) - (row["score"] or 0.0)) for row, new in scored]
    return TaskChange(
        task=task,
        num_scored=len(scored),
        num_changed=sum(_score_differs(row, new) for row, new in scored),
        mean_before=statistics.fmean(before) if before else None,
        mean_after=statistics.fmean(after) if after else None,
        largest_change=max(steps, default=0.0),
        num_kept=len(reasons),
        reasons=tuple(dict.fromkeys(reasons)),
    )
