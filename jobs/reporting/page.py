"""The report as one HTML page that needs nothing else: no file beside it, no network, no script.

Pure from findings to text, apart from `write_page`. Everything that comes from rows or settings is escaped; only SVG
that we drew goes in as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from evaluators.statistics.intervals import MIN_BOOTSTRAP_CLUSTERS, MIN_CLUSTERS
from evaluators.statistics.skewed import MIN_SKEWED_CLUSTERS
from jobs.analysis.differences import Difference
from jobs.analysis.findings import Findings
from jobs.analysis.published_beside import PublishedBeside, published_beside
from jobs.analysis.summary import (
    MacroMean,
    ResultSummary,
    TaskSummary,
    macro_intervals,
    series_names,
)
from jobs.analysis.worst_items import PolicyLosses, worst_items
from jobs.reporting.cells import (
    BITS,
    BYTES,
    POSITIONS,
    READ,
    SLOTS,
    mean_cells,
    silent_columns,
    stored_otherwise,
    task_cells,
    told,
)
from jobs.reporting.facts import run_facts
from jobs.reporting.figures import depth_map, memory_trace, quality, quality_panel
from jobs.reporting.figures.difference_map import DifferenceMap, difference_maps
from jobs.reporting.figures.style import SeriesStyle, legend, series_styles
from jobs.reporting.headline import headline
from jobs.reporting.notation import (
    TOO_FEW,
    counted,
    human_bytes,
    percent,
    plain,
    setting_in_words,
    shown_count,
    shown_cut,
    shown_difference,
    shown_interval,
    shown_label,
    shown_mode,
    shown_name,
    shown_task,
    signed,
    visible,
    where_rows_went,
    why_no_scale,
)
from jobs.results.grouping import Setting, setting_of, task_of
from jobs.results.schema import DONE_STATUSES, ResultError, Row
from kvmerger.variants import REFERENCE_LABELS

DEFAULT_NAME = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
_SHOWN_COLUMNS = ("trace", "prediction", "answers", "prompt_tail", "item_metadata")
_MAX_MESSAGE_CHARS = 2000
_COLUMNS_OF_A_PAGE = 6  # of the table of differences; what is wider is cut off in print


@dataclass(frozen=True, slots=True)
class Panel:
    """A drawn small multiple with what stands above it."""

    title: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class SettingPage:
    """Everything of one comparison, ready for the template."""

    title: str
    tasks: tuple[TaskSummary, ...]
    macro_means: tuple[MacroMean, ...]
    legend: list[tuple[str, Markup]]
    quality: list[tuple[str, list[Panel]]]
    differences: list[DifferenceMap]
    traces: list[tuple[memory_trace.TracePanel, Panel]]
    depth: list[depth_map.DepthMap]
    losses: list[PolicyLosses]
    published: tuple[PublishedBeside, ...]


@dataclass(frozen=True, slots=True)
class ReportPage:
    """The page, and its pages by setting for those who want the figures alone."""

    html: str
    settings: tuple[SettingPage, ...]


def write_page(page: str, path: Path) -> Path:
    """Write a rendered page.

    Raises:
        ResultError: it cannot be written.
    """
    try:
        # Not beside and renamed, as results are: a page can always be made again.
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ResultError(f"cannot write the report to {str(path)!r}: {error}; name another file") from error
    return path


def render_page(findings: Findings) -> ReportPage:
    """The page of a results folder."""
    rows, summary, differences = findings.rows_with(*_SHOWN_COLUMNS), findings.summary, findings.differences
    pages = tuple(
        _setting_page(setting, rows, summary, differences, index)
        for index, setting in enumerate(summary.settings())
    )
    html = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            facts=run_facts(findings),
            headline=headline(summary, differences),
            summary=summary,
            pages=pages,
            has_old_rows=any(row["prompt_tail"] is None for row in rows if row["status"] in DONE_STATUSES),
            max_message_chars=_MAX_MESSAGE_CHARS,
        )
    )
    return ReportPage(html, pages)


def _setting_page(
    setting: Setting,
    all_rows: Sequence[Row],
    summary: ResultSummary,
    all_differences: Sequence[Difference],
    index: int,
) -> SettingPage:
    rows = [row for row in all_rows if setting_of(row) == setting]
    tasks = tuple(task for task in summary.tasks if task.setting == setting)
    styles = series_styles(series_names(tasks))
    # Under several tasks the last one's name counts, which differs only in what a policy kept by itself.
    names = {(setting, it.label): shown_name(it) for task in tasks for it in task.variants}
    means = summary.macro_means(setting)
    differences = [it for it in all_differences if it.setting == setting]
    return SettingPage(
        title=setting_in_words(setting),
        tasks=tasks,
        macro_means=means if len(tasks) > 1 else (),
        legend=legend(styles),
        quality=_quality(tasks, means, rows, styles, f"s{index}"),
        differences=difference_maps(differences, names),
        traces=_traces(tasks, rows, styles, f"s{index}"),
        depth=depth_map.depth_maps(rows, names),
        losses=worst_items(rows),
        published=published_beside(summary, setting),
    )


def _quality(
    tasks: Sequence[TaskSummary],
    means: Sequence[MacroMean],
    rows: Sequence[Row],
    styles: dict[str, SeriesStyle],
    prefix: str,
) -> list[tuple[str, list[Panel]]]:
    """(measure, its panels): the mean over tasks first. What is recovered has no interval, so tasks show NLL itself."""
    groups = []
    for measure, column in (
        (quality_panel.RECOVERED, None),
        (quality_panel.NLL, "answer_nll"),
        (quality_panel.SCORE, "score"),
    ):
        on_tasks = [quality_panel.task_panel(it, measure, shown_label) for it in tasks if column is not None]
        intervals = {} if column is None or len(tasks) < 2 else macro_intervals(rows, column)
        macro = quality_panel.macro_panel(tasks, means, measure, intervals, shown_label)
        panels = [it for it in (macro, *on_tasks) if it is not None]
        drawn = [
            Panel(it.title, quality.draw(it, styles, f"{prefix} {measure} {number}"))
            for number, it in enumerate(panels)
        ]
        if drawn:
            groups.append((measure, drawn))
    return groups


def _traces(
    tasks: Sequence[TaskSummary], rows: Sequence[Row], styles: dict[str, SeriesStyle], prefix: str
) -> list[tuple[memory_trace.TracePanel, Panel]]:
    # Numbers in the names, since the ids inside each SVG are made from it and must be unique on the page.
    drawn = []
    for number, task in enumerate(tasks):
        panel = memory_trace.trace_panel(task, [row for row in rows if task_of(row) == task.task], shown_name)
        if panel is not None:
            svg = memory_trace.draw(panel, styles, f"{prefix} trace {number}")
            drawn.append((panel, Panel(panel.task, svg)))
    return drawn


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        # For every template: `select_autoescape` would go by the name's ending, and ours is .jinja.
        autoescape=True,
        undefined=jinja2.StrictUndefined,  # a misspelt name in a template is an error, not an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        columns_of_a_page=_COLUMNS_OF_A_PAGE,
        counted=counted,
        human_bytes=human_bytes,
        mean_cells=mean_cells,
        memory_columns=(BYTES, SLOTS, BITS, READ, POSITIONS),
        min_bootstrap_clusters=MIN_BOOTSTRAP_CLUSTERS,
        min_skewed_clusters=MIN_SKEWED_CLUSTERS,
        min_clusters=MIN_CLUSTERS,
        percent=percent,
        plain=plain,
        references=REFERENCE_LABELS,
        shown_count=shown_count,
        shown_cut=shown_cut,
        shown_difference=shown_difference,
        shown_interval=shown_interval,
        shown_mode=shown_mode,
        shown_name=shown_name,
        shown_task=shown_task,
        signed=signed,
        silent_columns=silent_columns,
        stored_otherwise=stored_otherwise,
        task_cells=task_cells,
        told=told,
        too_few=TOO_FEW,
        where_rows_went=where_rows_went,
        why_no_scale=why_no_scale,
    )
    environment.filters["visible"] = visible
    return environment
