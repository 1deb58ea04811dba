"""Everything of one comparison, ready for the template: model, mode and execution are the same in all of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evaluators.statistics.intervals import Interval
from jobs.analysis.differences import Difference
from jobs.analysis.item_outcomes import ItemList, item_list
from jobs.analysis.published_beside import PublishedBeside, published_beside
from jobs.analysis.summary import (
    MacroMean,
    ResultSummary,
    TaskSummary,
    macro_intervals,
    series_name,
    series_names,
)
from jobs.analysis.variant_summary import Kept
from jobs.analysis.worst_items import PolicyLosses, worst_items
from jobs.reporting.figures import depth_map, memory_trace, quality, quality_panel, turn_map
from jobs.reporting.figures.difference_map import DifferenceMap, difference_maps
from jobs.reporting.figures.front import NARROW, draw_front, front_labels
from jobs.reporting.figures.heat_map import HeatMap, heat_maps
from jobs.reporting.figures.style import SeriesStyle, legend, series_styles
from jobs.reporting.notation import setting_in_words, shown_label, shown_name
from jobs.reporting.page.choice import Choice
from jobs.reporting.page.ranked import RankedTable, ranked_table
from jobs.results.grouping import Setting, grouped, setting_of, task_of
from jobs.results.schema import Row
from kvmerger.variants import FULL, NO_CONTEXT

_MOST_DRAWN = 200  # variants times tasks of the figures of single tasks: some 3 KB each

_Intervals = Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True, slots=True)
class Panel:
    """A drawn figure with what stands above it."""

    title: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class SettingPage:
    """The parts of one setting. `front` and `narrow_front` are one figure in two shapes; `swatches` and `names`: by label.

    `has_beyond`: a policy lies beyond the front's axis. `is_drawn_by_task`: no task was too many for figures of its own.
    """

    title: str
    tasks: tuple[TaskSummary, ...]
    macro_means: tuple[MacroMean, ...]
    ranked: RankedTable | None
    front: Panel | None
    narrow_front: Markup | None
    has_beyond: bool
    swatches: Mapping[str, Markup]
    names: Mapping[str, str]
    choice: Choice | None
    heat: list[HeatMap]
    legend: list[tuple[str, Markup]]
    is_drawn_by_task: bool
    quality: list[tuple[str, list[Panel]]]
    differences: list[DifferenceMap]
    traces: list[tuple[memory_trace.TracePanel, Panel | None]]
    depth: list[depth_map.DepthMap]
    turns: list[turn_map.TurnMap]
    losses: list[PolicyLosses]
    items: ItemList
    published: tuple[PublishedBeside, ...]


def setting_page(
    setting: Setting,
    all_rows: Sequence[Row],
    summary: ResultSummary,
    all_differences: Sequence[Difference],
    choice: Choice | None,
    index: int,
    most_items: int,
) -> SettingPage:
    """The parts of the `index`-th setting; of its items the list holds the `most_items` that lose most."""
    rows = [row for row in all_rows if setting_of(row) == setting]
    tasks = tuple(task for task in summary.tasks if task.setting == setting)
    styles = series_styles(series_names(tasks))
    # Under several tasks the last one's name counts, which differs only in what a policy kept by itself.
    names = {it.label: shown_name(it) for task in tasks for it in task.variants}
    named = {(setting, label): name for label, name in names.items()}
    means = summary.macro_means(setting)
    differences = [it for it in all_differences if it.setting == setting]
    intervals = {it: macro_intervals(rows, it) for it in ("answer_nll", "score")[: 2 * (len(tasks) > 1)]}
    panel = _front_panel(tasks, means, intervals)
    front = front_labels(panel) if panel else frozenset()
    ranked = ranked_table(tasks, means, rows, differences, intervals, front)
    swatches = dict(legend(styles))
    drawn = _drawn(tasks)
    order = {line.label: line.name for line in ranked.policies} if ranked else {}
    return SettingPage(
        title=setting_in_words(setting),
        tasks=tasks,
        macro_means=means if len(tasks) > 1 else (),
        ranked=ranked,
        front=Panel(panel.title, draw_front(panel, styles, ranked.told, names)) if panel and ranked else None,
        narrow_front=draw_front(panel, styles, ranked.told, names, NARROW) if panel and ranked else None,
        has_beyond=panel is not None and bool(quality_panel.beyond(panel)),
        swatches={
            it.label: swatches[series_name(it)] for task in tasks for it in task.variants if it.label in order
        },
        names=names,
        choice=choice,
        heat=heat_maps(tasks, differences, order),
        legend=list(swatches.items()),
        is_drawn_by_task=drawn == tasks,
        quality=_quality(tasks, drawn, means, intervals, styles, f"s{index}"),
        differences=difference_maps(differences, named, _most_nll(tasks)),
        traces=_traces(tasks, drawn, rows, styles, f"s{index}"),
        depth=depth_map.depth_maps(rows, named),
        turns=turn_map.turn_maps(rows, named),
        losses=worst_items(rows),
        items=item_list(rows, most_items),
        published=published_beside(summary, setting),
    )


def _drawn(tasks: tuple[TaskSummary, ...]) -> tuple[TaskSummary, ...]:
    """The tasks that have figures of their own: all, unless they would be too many."""
    return tasks if sum(len(it.variants) for it in tasks) <= _MOST_DRAWN or len(tasks) == 1 else ()


def _front_panel(
    tasks: Sequence[TaskSummary], means: Sequence[MacroMean], intervals: _Intervals
) -> quality_panel.QualityPanel | None:
    """Answer NLL, which tells policies apart long before the score does; the score where there is no NLL."""
    for measure, column in ((quality_panel.NLL, "answer_nll"), (quality_panel.SCORE, "score")):
        if len(tasks) == 1:
            panel = quality_panel.task_panel(tasks[0], measure, _label)
        else:
            panel = quality_panel.macro_panel(tasks, means, measure, intervals.get(column, {}), _label)
        if panel is not None:
            return panel
    return None


def _most_nll(tasks: Sequence[TaskSummary]) -> float:
    """What no context costs more than the full cache on the middle one of the tasks, nats per token."""
    nll = [{it.label: it.answer_nll.mean for it in task.variants if it.answer_nll} for task in tasks]
    worths = [it[NO_CONTEXT] - it[FULL] for it in nll if NO_CONTEXT in it and FULL in it]
    worths = [it for it in worths if it > 0]
    return statistics.median_high(worths) if worths else math.inf


def _label(it: Kept) -> str:
    return it.label  # unique, as the names of variants that are known by their outcome need not be


def _quality(
    tasks: Sequence[TaskSummary],
    drawn_tasks: Sequence[TaskSummary],
    means: Sequence[MacroMean],
    intervals: _Intervals,
    styles: dict[str, SeriesStyle],
    prefix: str,
) -> list[tuple[str, list[Panel]]]:
    """(measure, its panels): the mean over `tasks` first, then `drawn_tasks`. What is recovered has no interval:
    tasks show NLL itself.
    """
    groups = []
    for measure, column in (
        (quality_panel.RECOVERED, None),
        (quality_panel.NLL, "answer_nll"),
        (quality_panel.SCORE, "score"),
    ):
        on_tasks = [
            quality_panel.task_panel(it, measure, shown_label) for it in drawn_tasks if column is not None
        ]
        of_means = intervals.get(column or "", {})
        macro = quality_panel.macro_panel(tasks, means, measure, of_means, shown_label)
        panels = [it for it in (macro, *on_tasks) if it is not None]
        drawn = [
            Panel(it.title, quality.draw(it, styles, f"{prefix} {measure} {number}"))
            for number, it in enumerate(panels)
        ]
        if drawn:
            groups.append((measure, drawn))
    return groups


def _traces(
    tasks: Sequence[TaskSummary],
    drawn_tasks: Sequence[TaskSummary],
    rows: Sequence[Row],
    styles: dict[str, SeriesStyle],
    prefix: str,
) -> list[tuple[memory_trace.TracePanel, Panel | None]]:
    """Every task's numbers, with the figures of `drawn_tasks`, or of the longest item alone where there are none."""
    by_task = grouped(rows, task_of)
    found = [memory_trace.trace_panel(task, by_task.get(task.task, ()), shown_name) for task in tasks]
    panels = [it for it in found if it is not None]
    longest = max(panels, key=lambda it: it.context_tokens, default=None)
    drawn = {it.task for it in drawn_tasks} or {longest.task if longest else ""}
    # Numbers in the names, since the ids inside each SVG are made from it and must be unique on the page.
    return [
        (
            it,
            Panel(it.task, memory_trace.draw(it, styles, f"{prefix} trace {number}"))
            if it.task in drawn
            else None,
        )
        for number, it in enumerate(panels)
    ]
