"""The tables at the end of a sweep, for a terminal.

One table never mixes query modes, models or tasks. Too few clusters are always told, and so is where every planned row
went.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.text import Text

from evaluators.statistics.skewed import MIN_SKEWED_CLUSTERS, TOO_FEW_CONTEXTS
from jobs.analysis.published_beside import PublishedBeside, published_beside
from jobs.analysis.ranking.order import AS_CONFIGURED, BY_DEFAULT, in_order
from jobs.analysis.summary import ResultSummary, TaskSummary, policies_of
from jobs.console.printing import text_console
from jobs.reporting.cells import memory_words, stored_otherwise
from jobs.reporting.notation import (
    TOO_FEW,
    UNKNOWN,
    counted,
    percent,
    shown_cut,
    shown_device,
    shown_interval,
    shown_name,
    shown_task,
    where_rows_went,
    why_no_scale,
)
from jobs.reporting.table import (
    TOP1,
    WHOLE_COLUMNS,
    add_folding_column,
    hidden_columns,
    overall_table,
    read_note,
    task_table,
    titled_table,
)

_ROOMY_COLUMNS = 100
"""Below this width our score stands without its interval."""
_NO_BUDGET = "full"
_LOG_COLUMNS = 100
_MESSAGE_CHARS = 300
_LEGEND = (
    "NLL: nats per token of the gold answer; recov.: of what the context is worth to that NLL, the share that is left (0: "
    "as without it, 1: as with the full cache); {agreement}: against the full cache, along its own answer; "
)
_SORT_WORDS = {
    BY_DEFAULT: "answer NLL",
    "recovered": "what is recovered",
    "kl": "KL",
    "top1": "top-1",
    "score": "score",
    "bytes": "bytes held",
    "slots": "slots",
}
_MAX_LINES = 30
"""Of policies over all tables; more than these scroll away."""
_NO_INTERVAL = f"95 % intervals, none where all values are equal or, of KL, {TOO_FEW_CONTEXTS}"
_CORPUS_SCORE = (
    "the score above is a mean over items; the published number, from corpus means of its parts, is"
)


class View(NamedTuple):
    """What of a summary is shown. `sort` is one of `jobs.analysis.ranking.order.SORTS`.

    `is_brief`: of several tasks their mean alone; None: where all tables together have more than 30 policies' lines.
    """

    sort: str = BY_DEFAULT
    is_brief: bool | None = False

    def hides_tasks(self, summary: ResultSummary) -> bool:
        """Whether the tables of single tasks are left out, where there is a mean over several."""
        if self.is_brief is None:
            return sum(len(policies_of(task)) for task in summary.tasks) > _MAX_LINES
        return self.is_brief


_EVERYTHING = View()


def render(
    summary: ResultSummary, width: int, view: View = _EVERYTHING, headline: Sequence[str] = ()
) -> RenderableType:
    """Everything a reader needs, for a terminal of `width` columns; `headline` is what it comes to, and comes last."""
    parts: list[RenderableType] = []
    for setting in summary.settings():
        tasks = [
            replace(task, variants=tuple(in_order(task.variants, view.sort)))
            for task in summary.tasks
            if task.setting == setting
        ]
        if len(tasks) > 1 and view.hides_tasks(summary):
            means = in_order(summary.macro_means(setting), view.sort)
            parts += [overall_table(setting, means, len(tasks), width), *_brief_notes(tasks), Text()]
            continue
        for task in tasks:
            parts += [task_table(task, width), *_notes(task, width), Text()]
        if len(tasks) > 1:
            means = in_order(summary.macro_means(setting), view.sort)
            parts += [overall_table(setting, means, len(tasks), width), Text()]
        for beside in published_beside(summary, setting):
            parts += [*render_published(beside, width), Text()]
    # `Text` throughout: labels and messages hold square brackets, which rich would take for its markup.
    return Group(
        *parts,
        *_legend(summary, width, view),
        *_failure_lines(summary),
        *_sum_lines(summary),
        *(Text(sentence, style="bold") for sentence in headline),
    )


def report_console(width: int | None = None) -> Console:
    """Standard output, `width` columns wide; by default as wide as the terminal, and 100 for a file or a pipe."""
    # Without a terminal rich would take 80 columns, or COLUMNS of a shell that is long gone, and fold the tables.
    return text_console(width or (None if sys.stdout.isatty() else _LOG_COLUMNS))


def _legend(summary: ResultSummary, width: int, view: View) -> Iterator[Text]:
    variants = [it for task in summary.tasks for it in task.variants]
    if not variants:
        return
    if hidden := hidden_columns(width):
        how = f"`report RESULTS_DIR --width {WHOLE_COLUMNS}` or --csv shows all"
        yield Text(f"not shown in {width} columns: {', '.join(hidden)}; {how}", style="yellow")
    order = "as configured" if view.sort == AS_CONFIGURED else f"by {_SORT_WORDS[view.sort]}, best first"
    memory = "; ".join(f"{column}: {words}" for column, words in memory_words(variants).items())
    legend = _LEGEND.format(agreement="KL" if TOP1 in hidden else f"KL and {TOP1}")
    yield Text(f"variants {order}; {legend}{memory}; {_NO_INTERVAL}", style="dim")
    if stored := stored_otherwise(variants):
        yield Text(stored, style="dim")
    yield Text()


def _brief_notes(tasks: Sequence[TaskSummary]) -> Iterator[Text]:
    """What a reader of the mean over tasks must know of them, in a line each, and how to see them."""
    too_few = [it for it in tasks if it.is_too_few]
    if too_few:
        fewest = min(it.num_clusters for it in too_few)
        where = f"{len(too_few)} of {len(tasks)} tasks, {counted(fewest, 'cluster')} in the smallest"
        yield Text(f"n: {TOO_FEW} on {where}", style="yellow")
    without_scale = [it for it in tasks if not it.has_scale and it.num_clusters]
    if without_scale:
        yield Text(f"no verdict on {len(without_scale)} of {len(tasks)} tasks, which do not test the cache")
    num_cut = sum(it.num_cut_items for it in tasks)
    if num_cut:
        yield Text(f"cut: {num_cut} prompts were too long and lost a part", style="yellow")
    degenerate = dict.fromkeys(shown_name(it) for task in tasks for it in task.variants if it.num_degenerate)
    if degenerate:
        yield Text(f"degenerate on some task: {', '.join(degenerate)}", style="yellow")
    yield Text(
        f"shown is the mean over {len(tasks)} tasks; `report RESULTS_DIR --all` shows each of them with intervals"
    )


def _notes(task: TaskSummary, width: int) -> Iterator[Text]:
    if task.is_too_few:
        of_kl = ", of KL Hall's" if task.num_clusters >= MIN_SKEWED_CLUSTERS else ""
        why = f"{TOO_FEW}; the intervals are Student's t over contexts{of_kl}"
        yield Text(f"n = {counted(task.num_clusters, 'cluster')}: {why}", style="yellow")
    if read := read_note(task, width):
        yield Text(read)
    if not task.has_scale and task.num_clusters:
        yield Text(f"no verdict: {why_no_scale(task)}, so nothing can be recovered")
    if cut := shown_cut(task):
        yield Text(f"cut: {cut}", style="yellow")
    # Mostly the same for all variants of a task, hence told once.
    for reason in dict.fromkeys(it.unscored_reason for it in task.variants if it.unscored_reason):
        yield Text(f"no score: {reason}")
    published = [
        f"{shown_name(it)} {100 * it.corpus_score:.2f}" for it in task.variants if it.corpus_score is not None
    ]
    if published:
        yield Text(f"{_CORPUS_SCORE}: {', '.join(published)}")
    for variant in task.variants:
        if variant.num_degenerate:
            where = f"{variant.num_degenerate} of {variant.num_finished} rows"
            yield Text(
                f"degenerate: {shown_name(variant)}, {where}: {variant.degenerate_reason}", style="yellow"
            )


def _failure_lines(summary: ResultSummary) -> Iterator[Text]:
    for it in summary.failures:
        message = it.message if len(it.message) <= _MESSAGE_CHARS else f"{it.message[:_MESSAGE_CHARS]}…"
        where = f"failed: {it.label}, {it.num_rows} x {it.error_type} in {it.phase}"
        yield Text.assemble((where, "red"), f": {message}")


def _sum_lines(summary: ResultSummary) -> Iterator[Text]:
    if len(summary.devices) > 1:
        counts = ", ".join(f"{it.num_rows} on {shown_device(it.device, it.name)}" for it in summary.devices)
        yield Text(
            f"rows of several devices, which differ in seconds and last bits: {counts}", style="yellow"
        )
    yield Text(where_rows_went(summary), style="bold")
    if summary.num_other:
        yield Text(f"{summary.num_other} rows of other settings in this folder are not shown", style="dim")


def render_published(beside: PublishedBeside, width: int) -> Iterator[RenderableType]:
    """The table, what its marks mean and what differs, for ``width`` columns."""
    where = f"{beside.source}, {beside.published_model}; ours: {beside.our_model}"
    table = titled_table(f"published beside ours: {beside.table}", where)
    add_folding_column(table, "task")
    has_ends = width >= _ROOMY_COLUMNS
    for head in ("n", "kept", "ours", *(["95 %"] if has_ends else []), "published", "at"):
        add_folding_column(table, head, "right")
    for figure in beside.figures:
        ends = shown_interval(figure.interval, "{:.1f}", highest=1.0, factor=100).ends
        table.add_row(
            Text(shown_name(figure)),
            shown_task(figure).rpartition("/")[2],
            str(figure.num_items),
            percent(figure.kept_ratio),
            f"{figure.ours:.2f}",
            *([Text(ends or UNKNOWN, style="dim")] if has_ends else []),
            Text(f"{figure.published:.2f} [{figure.mark}]"),
            _NO_BUDGET if figure.budget is None else percent(figure.budget, 0),
        )
    yield table
    if not has_ends:
        yield Text(f"not shown in {width} columns: 95 % intervals of ours", style="yellow")
    marks = "; ".join(f"[{mark}]: read {words}" for mark, words in beside.read_in.items())
    yield Text(
        f"{marks}; published is over the whole task, ours over n items: shown, not compared", style="dim"
    )
    for words in beside.differs:
        yield Text(f"- {words}", style="dim")
