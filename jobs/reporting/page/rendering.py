"""The report as one HTML page that needs nothing else: no file beside it, no network.

Pure from findings to text, apart from `write_page`. Everything that comes from rows or settings is escaped; only SVG
that we drew and our one script go in as they are. The script sorts, filters and shows what belongs together; everything can
be read without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2

from evaluators.statistics.intervals import MIN_BOOTSTRAP_CLUSTERS, MIN_CLUSTERS
from evaluators.statistics.skewed import MIN_SKEWED_CLUSTERS
from jobs.analysis.folder.findings import Findings
from jobs.analysis.item_outcomes import ItemList
from jobs.console.whole_file import write_whole
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
from jobs.reporting.headline import headline_of
from jobs.reporting.notation import (
    TOO_FEW,
    counted,
    human_bytes,
    percent,
    plain,
    shown_count,
    shown_cut,
    shown_difference,
    shown_interval,
    shown_mode,
    shown_name,
    shown_task,
    signed,
    visible,
    where_rows_went,
    why_no_scale,
)
from jobs.reporting.page.choice import choices
from jobs.reporting.page.setting import SettingPage, setting_page
from jobs.results.schema import DONE_STATUSES, ResultError
from kvmerger.variants import REFERENCE_LABELS

DEFAULT_NAME = "report.html"
TEMPLATES = Path(__file__).parent.parent / "templates"
_SHOWN_COLUMNS = ("trace", "prediction", "answers", "prompt_tail", "item_metadata")
_CELLS_OF_A_SCREEN = 15  # of the table of differences, about: larger ones are folded
_DEPTHS_OF_A_SCREEN = 6  # maps over depth side by side
_MAX_MESSAGE_CHARS = 2000
_MOST_ITEMS = 1500  # of the list of all items: about 700 KB, which a browser opens at once
_MOST_LISTED_CHARS = 120  # of an answer in that list; the worst items have theirs whole
_COLUMNS_OF_A_PAGE = 6  # of the table of differences; what is wider is cut off in print


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
        if path.is_symlink():
            raise FileExistsError("it is a link, through which nothing is written; delete it")
        write_whole(path, page.encode())
    except OSError as error:
        raise ResultError(f"cannot write the report to {str(path)!r}: {error}; name another file") from error
    return path


def render_page(findings: Findings) -> ReportPage:
    """The page of a results folder."""
    rows, summary, differences = findings.rows_with(*_SHOWN_COLUMNS), findings.summary, findings.differences
    settings = summary.settings()
    chosen = choices(findings.certificates)
    pages = tuple(
        setting_page(
            setting, rows, summary, differences, chosen.get(setting), index, _MOST_ITEMS // len(settings)
        )
        for index, setting in enumerate(settings)
    )
    html = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            facts=run_facts(findings),
            headline=headline_of(findings),
            summary=summary,
            pages=pages,
            has_old_rows=any(row["prompt_tail"] is None for row in rows if row["status"] in DONE_STATUSES),
            max_message_chars=_MAX_MESSAGE_CHARS,
        )
    )
    return ReportPage(html, pages)


def _outcomes_of(items: ItemList) -> list[tuple[str, str]]:
    """(value, name) of a filter's choices, as of the other two."""
    return [
        (
            it,
            f"{it} ({number})"
            if items.num_shown_of[it] == number
            else f"{it} ({items.num_shown_of[it]} of {number})",
        )
        for it, number in items.num_of.items()
    ]


def _tasks_of(page: SettingPage) -> list[tuple[str, str]]:
    return [(it.task, it.task) for it in page.tasks]


def _variants_of(page: SettingPage) -> list[tuple[str, str]]:
    return [(line.label, line.name) for line in page.ranked.policies] if page.ranked else []


def _short(text: str) -> str:
    """The beginning of a stored text, as `visible` shows it."""
    return visible(text if len(text) <= _MOST_LISTED_CHARS else f"{text[:_MOST_LISTED_CHARS]}…")


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
        cells_of_a_screen=_CELLS_OF_A_SCREEN,
        columns_of_a_page=_COLUMNS_OF_A_PAGE,
        counted=counted,
        depths_of_a_screen=_DEPTHS_OF_A_SCREEN,
        human_bytes=human_bytes,
        mean_cells=mean_cells,
        memory_columns=(BYTES, SLOTS, BITS, READ, POSITIONS),
        outcomes_of=_outcomes_of,
        tasks_of=_tasks_of,
        variants_of=_variants_of,
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
    environment.filters["short"] = _short
    return environment
