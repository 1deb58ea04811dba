"""The one table of a setting: its variants ranked, the best of each column marked, and those not told apart from it.

Of several tasks it holds the mean over them, each weighing the same; of one task that task's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluators.statistics.intervals import Interval
from jobs.analysis.differences import Difference
from jobs.analysis.pairing import ANSWER_NLL, SCORE, ComparedMetric
from jobs.analysis.ranking.leaders import KL, TOP1, Leader, leader
from jobs.analysis.ranking.order import COLUMNS, Line, in_order
from jobs.analysis.summary import MacroMean, TaskSummary
from jobs.analysis.variant_summary import VariantSummary
from jobs.reporting.cells import mean_cells, task_cells
from jobs.reporting.figures.heat_map import MARKS
from jobs.reporting.notation import (
    Shown,
    counted,
    shown_count,
    shown_interval,
    shown_name,
    why_no_scale,
)
from jobs.results.schema import Row
from kvmerger.variants import REFERENCE_LABELS

_HEADS: Mapping[str, tuple[str, ComparedMetric | None]] = {
    "bytes": ("bytes", None),
    "nll": ("answer NLL", ANSWER_NLL),
    "recovered": ("recovered", None),
    "score": ("score", SCORE),
    "kl": ("KL", KL),
    "top1": ("top-1", TOP1),
}
"""Column → its head, and the metric that variants are told apart by; of the others the best is no news, or has no test."""
_RANKING = ("nll", "score", "kl", "top1")
_MORE_IS_BETTER = ("recovered", "score", "top1")
BEST, CLOSE = "best", "close"


@dataclass(frozen=True, slots=True)
class RankedCell:
    """`value` sorts. `mark`: "best", "close" (not told apart from the best), or ""; `verdict` is against the full cache."""

    shown: Shown
    value: float | None
    mark: str = ""
    verdict: str = ""

    @property
    def sign(self) -> str:
        """The verdict's sign; "" without one."""
        return MARKS.get(self.verdict, "")


@dataclass(frozen=True, slots=True)
class RankedLine:
    """One variant; `cells` are under the table's heads. `count` is of its rows, "" over several tasks."""

    label: str
    name: str
    count: str
    is_on_front: bool
    num_degenerate: int
    cells: tuple[RankedCell, ...]


@dataclass(frozen=True, slots=True)
class RankedTable:
    """`heads` are (column, head, whether less is better); `notes` say why no mark tells more."""

    where: str
    ranked_by: str
    heads: tuple[tuple[str, str, bool], ...]
    references: tuple[RankedLine, ...]
    policies: tuple[RankedLine, ...]
    notes: tuple[str, ...]

    @property
    def told(self) -> dict[str, str]:
        """Label → its numbers in words."""
        return {
            line.label: f"{line.name}: "
            + ", ".join(
                f"{head} {cell.shown.on_one_line()}"
                for (_, head, _), cell in zip(self.heads, line.cells, strict=True)
            )
            + (f", n = {line.count}" if line.count else "")
            for line in (*self.references, *self.policies)
        }

    @property
    def has_close(self) -> bool:
        """Whether a mark says "not told apart from the best"."""
        return any(cell.mark == CLOSE for line in self.policies for cell in line.cells)


def ranked_table(
    tasks: Sequence[TaskSummary],
    means: Sequence[MacroMean],
    rows: Sequence[Row],
    differences: Sequence[Difference],
    intervals: Mapping[str, Mapping[str, Interval]],
    front: frozenset[str],
) -> RankedTable | None:
    """The table of one setting; None where no policy is in it.

    `means` are over `tasks`, `intervals` column → label → the mean over tasks with its interval; both count where there are
    several. `front` are the labels on the Pareto front.
    """
    lines: Sequence[Line] = means if len(tasks) > 1 else tasks[0].variants if tasks else ()
    policies = [it for it in lines if it.label not in REFERENCE_LABELS]
    if not policies:
        return None
    columns = [column for column in _HEADS if any(_value(it, column) is not None for it in lines)]
    # A number that no policy has ranks nothing.
    by = next((it for it in _RANKING if any(_value(line, it) is not None for line in policies)), "bytes")
    leaders = _leaders(policies, tasks, rows)
    task = None if len(tasks) > 1 else tasks[0].task
    judged = {(it.label, it.metric): it.verdict for it in differences if it.task == task}

    def line_of(it: Line) -> RankedLine:
        shown = _shown(it, intervals)
        cells = []
        for column in columns:
            metric = _HEADS[column][1]
            verdict = judged.get((it.label, metric), "") if metric else ""
            mark = _mark(it.label, leaders.get(column))
            cells.append(RankedCell(shown[column], _value(it, column), mark, verdict))
        count, degenerate = (
            (shown_count(it), it.num_degenerate) if isinstance(it, VariantSummary) else ("", 0)
        )
        return RankedLine(it.label, shown_name(it), count, it.label in front, degenerate, tuple(cells))

    ranked = [
        line_of(it) for it in (in_order(means, by) if len(tasks) > 1 else in_order(tasks[0].variants, by))
    ]
    return RankedTable(
        where=_where(tasks),
        ranked_by=_HEADS[by][0],
        heads=tuple((column, _HEADS[column][0], column not in _MORE_IS_BETTER) for column in columns),
        references=tuple(it for it in ranked if it.label in REFERENCE_LABELS),
        policies=tuple(it for it in ranked if it.label not in REFERENCE_LABELS),
        notes=tuple(dict.fromkeys(it.why for it in leaders.values() if it.why)),
    )


def _leaders(
    policies: Sequence[Line], tasks: Sequence[TaskSummary], rows: Sequence[Row]
) -> dict[str, Leader]:
    no_verdict = "" if any(task.has_scale for task in tasks) else why_no_scale(tasks[0])
    found = {}
    for column, (_, metric) in _HEADS.items():
        values = {it.label: _value(it, column) for it in policies}
        known = {label: value for label, value in values.items() if value is not None}
        if metric is not None and len(known) > 1 and (it := leader(rows, metric, known, no_verdict)):
            found[column] = it
    return found


def _mark(label: str, it: Leader | None) -> str:
    if it is None:
        return ""
    if label == it.label:
        return BEST
    # Where nothing can be told apart, a mark on every line would say less than the note does.
    return CLOSE if label in it.close and not it.why else ""


def _value(it: Line, column: str) -> float | None:
    value = COLUMNS[column](it)
    return -value if value is not None and column in _MORE_IS_BETTER else value


def _shown(it: Line, intervals: Mapping[str, Mapping[str, Interval]]) -> dict[str, Shown]:
    cells = task_cells(it) if isinstance(it, VariantSummary) else mean_cells(it)
    nll, score = cells.answer_nll, cells.score
    if isinstance(it, MacroMean):
        of_nll, of_score = (intervals.get(column, {}).get(it.label) for column in ("answer_nll", "score"))
        nll = shown_interval(of_nll) if of_nll else nll
        score = (
            shown_interval(of_score, "{:.1f}", highest=1.0, factor=SCORE.unit_factor) if of_score else score
        )
    # Two intervals a line are as many as there is room for; all others are in the tasks' tables.
    fidelity = (Shown(cells.kl.mean), Shown(cells.top1.mean))
    shown = (cells.held, nll, cells.recovered, score, *fidelity)
    return dict(zip(_HEADS, shown, strict=True))


def _where(tasks: Sequence[TaskSummary]) -> str:
    if len(tasks) > 1:
        return f"mean of {len(tasks)} tasks, each weighing the same"
    (task,) = tasks
    return f"{task.task}, {counted(task.num_items, 'item')} on {counted(task.num_clusters, 'context')}"
