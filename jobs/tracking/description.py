"""The description a run opens with: a ranked table, the verdict, what ran, and where the rest is. Markdown for MLflow's page.

What does not fit is left out by whole lines or tables, and the text says where it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from jobs.analysis.differences import Difference
from jobs.analysis.pairing import SCORE
from jobs.analysis.summary import MacroMean, ResultSummary, TaskSummary
from jobs.analysis.variant_summary import VariantSummary, mean_of
from jobs.reporting.cells import (
    BITS,
    BYTES,
    READ,
    SLOTS,
    Cells,
    mean_cells,
    memory_words,
    silent_columns,
    stored_otherwise,
    task_cells,
)
from jobs.reporting.markdown import escaped, escaped_line, fenced
from jobs.reporting.notation import (
    UNKNOWN,
    setting_in_words,
    shown_difference,
    shown_name,
    where_rows_went,
)
from jobs.results.grouping import Setting
from jobs.tracking.metrics import file_name
from jobs.tracking.tracker import EXPERIMENT_ID, RUN_ID, VIEW, WORKSPACE
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT

MAX_CHARS = 5000
"""Of one description: servers older than 3.0 refuse more."""

_ID_CHARS = 32  # of a run's id, and the most of an experiment's
_NO_BREAK = "\u00a0"
# MLflow's tables leave no room between columns, and blanks alone are trimmed away. Behind the cell, since an interval that
# stands under its mean would touch its neighbour; without a place to break, or the gap becomes a line.
_GAP = f"{2 * _NO_BREAK}\u2060"
_SIGNS = {"better": "▲", "worse": "▼"}
_VERDICT = "verdict"
_HEADS = ("score", "- full cache", _VERDICT, "NLL", "recovered", BYTES, SLOTS, BITS, READ)
_LEGEND = (
    "In brackets 95 % intervals; *no spread*: all values are equal, so there is none. *- full cache*: the score minus the "
    "full cache's on the same items, in points of 100; *verdict*: ▲ measurably better, ▼ worse; *NLL*: nats per token of the "
    "gold answer; *recovered*: share left of what the context is worth to it; "
)
_ELSEWHERE = (
    "**More** under *Artifacts*: `report.html` (figures, worst items), `summary.md` (all tables), `settings.yaml`, "
    "`environment.json`, `figures/`, `predictions/`, `traces/`, and `rows/rows.parquet` (every item). The variants are the "
    "runs below this one."
)
_LINKS = (
    f"**[Ranked list of variants](#/experiments/{EXPERIMENT_ID}/runs?viewStateShareKey={VIEW}&{WORKSPACE})**, "
    f"[report](#/experiments/{EXPERIMENT_ID}/runs/{RUN_ID}/artifacts/report.html?{WORKSPACE})"
)
_LAST = (FULL_AA, NO_CONTEXT)


def sweep_description(
    name: str,
    facts: str,
    summary: ResultSummary,
    differences: Sequence[Difference],
    figures: Sequence[str],
    headline: Sequence[str],
) -> str:
    """The parent's description. `facts` is a sentence on model and data, `figures` are names in `figures/`, best first,
    `headline` are the report's sentences."""
    tables = [table for setting in summary.settings() for table in _tables(summary, setting, differences)]
    # MLflow folds a description behind some 100 px: the links, and how the first lines of the table begin.
    opening = f"{_LINKS}: {tables[0].title}" if tables else _LINKS
    told = [
        *(f"**{escaped(it)}**" for it in headline),
        f"**{escaped(name)}**: {escaped(facts)}. {where_rows_went(summary).capitalize()}.",
    ]
    last, legend = [_ELSEWHERE], _legend([it for task in summary.tasks for it in task.variants])
    pictures = [_picture(figure) for figure in figures]
    # Reserved before any table is taken: what stands after the tables, blank lines between the blocks, and the ids that
    # will take the places of RUN_ID and EXPERIMENT_ID.
    room = (
        MAX_CHARS
        - sum(len(it) + 2 for it in (opening, *told, *last, *pictures, legend))
        - _ID_CHARS * (len(pictures) + 3)
        - len(_more_tables(len(tables)))
        - 2
    )
    shown: list[str] = []
    for index, (title, table) in enumerate(tables):
        whole = f"{title}\n\n{table}" if index else table
        part = _fitting(whole, room)
        shown += [part] if part else []
        room -= len(part) + 2
        if part != whole:
            num_left = len(tables) - index - bool(part)
            shown += [_more_tables(num_left)] if num_left else []
            break
    blocks = [opening, *shown[:1], *told, *shown[1:], *([legend] if tables else []), *pictures, *last]
    return "\n\n".join(blocks)


def variant_description(label: str, summary: ResultSummary, differences: Sequence[Difference]) -> str:
    """A child's description: its row of every task's table."""
    own = [(task, it) for task in summary.tasks for it in task.variants if it.label == label]
    variants = [it for _, it in own]
    lines = [(task.task, _task_cells(it, task, differences)) for task, it in own]
    legend = _legend(variants)
    table = _table("task", lines, silent_columns(variants))
    return "\n\n".join([_fitting(table, MAX_CHARS - len(legend) - 2), legend])


def _legend(variants: Sequence[VariantSummary]) -> str:
    memory = "; ".join(f"*{column}*: {words}" for column, words in memory_words(variants).items())
    stored = stored_otherwise(variants)
    return f"{_LEGEND}{memory}." + (f" *{stored}*." if stored else "")


def summary_text(name: str, facts: str, headline: Sequence[str], table: str) -> str:
    """`summary.md`: the same beginning, then every table as the terminal shows it."""
    told = (facts, *headline)
    lines = [f"# {escaped(name)}", *map(escaped_line, told), fenced(table)]
    return "\n\n".join(lines) + "\n"


class _Table(NamedTuple):
    title: str
    text: str


def _tables(summary: ResultSummary, setting: Setting, differences: Sequence[Difference]) -> list[_Table]:
    """The mean over tasks first, then the tasks."""
    tasks = [task for task in summary.tasks if task.setting == setting]
    of_setting = [it for it in differences if it.setting == setting]
    tables = [
        _Table(
            f"**{escaped(task.task)}**, {escaped(setting_in_words(setting))}", _task_table(task, of_setting)
        )
        for task in tasks
    ]
    if len(tasks) > 1:
        means = _mean_table(summary.macro_means(setting), of_setting)
        tables.insert(
            0, _Table(f"**mean of {len(tasks)} tasks**, {escaped(setting_in_words(setting))}", means)
        )
    return tables


def _task_table(task: TaskSummary, differences: Sequence[Difference]) -> str:
    ranked = sorted(task.variants, key=lambda it: _place(it.label, mean_of(it.answer_nll), mean_of(it.score)))
    lines = [(shown_name(it), _task_cells(it, task, differences)) for it in ranked]
    return _table("variant", lines, silent_columns(task.variants))


def _task_cells(variant: VariantSummary, task: TaskSummary, differences: Sequence[Difference]) -> list[str]:
    return _cells(variant.label, task.task, task_cells(variant), differences)


def _mean_table(means: Sequence[MacroMean], differences: Sequence[Difference]) -> str:
    ranked = sorted(means, key=lambda it: _place(it.label, it.answer_nll, it.score))
    lines = [(shown_name(it), _cells(it.label, None, mean_cells(it), differences)) for it in ranked]
    return _table("variant", lines, silent_columns(means))


def _place(label: str, answer_nll: float | None, score: float | None) -> tuple[float, ...]:
    """The full cache first, then the policies by NLL, of equal ones by score, and the other references."""
    group = 0 if label == FULL else 2 if label in _LAST else 1
    return (
        group,
        math.inf if answer_nll is None else answer_nll,
        math.inf if score is None else -score,
    )


def _cells(label: str, task: str | None, cells: Cells, differences: Sequence[Difference]) -> list[str]:
    """The cells under `_HEADS`; `task` is None for the mean over the tasks."""
    memory = (cells.held, cells.slots, cells.bits, cells.read)
    score, *numbers = (it.on_one_line() for it in (cells.score, cells.answer_nll, cells.recovered, *memory))
    return [score, *_difference(label, task, differences), *numbers]


def _difference(label: str, task: str | None, differences: Sequence[Difference]) -> tuple[str, str]:
    """The difference of the scores, and the verdicts there are."""
    here = [it for it in differences if it.label == label and it.task == task]
    verdict = ", ".join(
        f"{it.metric.name} {_SIGNS[it.verdict]}" for it in here if it.verdict != "inconclusive"
    )
    paired = next((it.paired for it in here if it.metric is SCORE and it.paired is not None), None)
    return shown_difference(SCORE, paired.interval).on_one_line() if paired else UNKNOWN, verdict


def _table(first_head: str, lines: Sequence[tuple[str, Sequence[str]]], silent: frozenset[str]) -> str:
    """Lines of (name, cells under _HEADS) without `silent` columns; that of verdicts only where there is one."""
    place = _HEADS.index(_VERDICT)
    hidden = silent if any(cells[place] for _, cells in lines) else silent | {_VERDICT}
    shown = [index for index, head in enumerate(_HEADS) if head not in hidden]
    rows = [(first_head, _HEADS), *lines]
    head, *body = (_line(name, [cells[index] for index in shown]) for name, cells in rows)
    return "\n".join([head, f"|---|{'---|' * len(shown)}", *body])


def _line(name: str, cells: Sequence[str]) -> str:
    return f"|{escaped(name)}{_GAP}|" + "".join(f"{_kept_together(escaped(cell))}{_GAP}|" for cell in cells)


def _kept_together(cell: str) -> str:
    """The cell with blanks that do not break, save the one before its interval."""
    return cell.replace(" ", _NO_BREAK).replace(f"{_NO_BREAK}[", " [")


def _fitting(table: str, room: int) -> str:
    """The table, or as many of its lines as there is room for with a word on the others; "" for none."""
    if len(table) <= room:
        return table
    lines = table.split("\n")
    num_head = next(index for index, line in enumerate(lines) if line.startswith("|---")) + 1
    for num_kept in range(len(lines) - 1, num_head, -1):
        shown = "\n".join(lines[:num_kept]) + f"\n\n… and {len(lines) - num_kept} more rows in `summary.md`"
        if len(shown) <= room:
            return shown
    return ""


def _more_tables(count: int) -> str:
    return f"… and {count} more tables in `summary.md`"


def _picture(name: str) -> str:
    path = quote(f"figures/{name}", safe="")
    # Relative to MLflow's page, whose address nobody here knows; the run's id is put in when it is there.
    return f"![{file_name(name)}](get-artifact?path={path}&run_uuid={RUN_ID})"
