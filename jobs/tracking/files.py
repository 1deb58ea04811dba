"""The files beside a sweep's run: the report, all tables, what was asked and with what, figures, and every row.

Everything is written from the result folder's own rows, so what is mirrored is what the report says.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.analysis.worst_items import Loss, PolicyLosses
from jobs.console.addresses import hidden_in
from jobs.console.spreadsheet import cells
from jobs.reporting.facts import shown_settings
from jobs.reporting.figures.standalone import page_colors, standalone
from jobs.reporting.notation import visible
from jobs.reporting.page import DEFAULT_NAME, TEMPLATES, ReportPage, SettingPage
from jobs.results.grouping import grouped, task_of
from jobs.results.schema import Row
from jobs.results.seal import sealed_parquet
from jobs.tracking.metrics import file_name

SUMMARY, SETTINGS, ENVIRONMENT = "summary.md", "settings.yaml", "environment.json"
WORST_ITEMS = "worst_items.json"
"""The items on which each policy loses most, which MLflow shows as a table."""
ROWS = "rows/rows.parquet"
"""All rows of the sweep, whole: what another sweep can be compared with."""

_TRACE_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("phase", pa.string(), nullable=False),
        pa.field("live_bytes", pa.int64(), nullable=False),
        pa.field("reserved_bytes", pa.int64(), nullable=False),
    ]
)
_WORST_COLUMNS = (
    "variant",
    "nll_loss",
    "answer",
    "full_cache_answer",
    "gold",
    "score_loss",
    "task",
    "item_id",
)
_DIGITS = 4  # behind the point: the column would show sixteen
_PREDICTION_COLUMNS = ("item_id", "variant", "score", "prediction", "answers", "answer_nll", "status")


def write_texts(folder: Path, summary_md: str, settings_yaml: str, environment: Mapping[str, Any]) -> None:
    """`summary.md`, `settings.yaml` and `environment.json`; passwords in addresses are taken out."""
    folder.joinpath(SUMMARY).write_text(summary_md, encoding="utf-8")
    folder.joinpath(SETTINGS).write_text(shown_settings(settings_yaml), encoding="utf-8")
    text = json.dumps(hidden_in(environment), indent=2, sort_keys=True)
    folder.joinpath(ENVIRONMENT).write_text(f"{text}\n", encoding="utf-8")


def write_worst_items(folder: Path, losses: Sequence[PolicyLosses], names: Mapping[str, str]) -> None:
    """`worst_items.json`, the largest loss of answer NLL first; `names` are what tables call variants."""
    told = [loss for of_policy in losses for loss in of_policy.losses]
    told.sort(key=lambda loss: -math.inf if loss.nll_loss is None else loss.nll_loss, reverse=True)
    # As pandas writes a table that is "split", which is what MLflow's page reads.
    data = [_worst_item(loss, names) for loss in told]
    text = json.dumps({"columns": list(_WORST_COLUMNS), "data": data}, ensure_ascii=True)
    folder.joinpath(WORST_ITEMS).write_text(text, encoding="utf-8")


def _worst_item(loss: Loss, names: Mapping[str, str]) -> list[str | float | None]:
    """The cells under `_WORST_COLUMNS`."""
    return [
        names.get(loss.policy.label, loss.policy.label),
        _rounded(loss.nll_loss),
        visible(loss.policy.text),
        visible(loss.full.text),
        visible(json.dumps(loss.gold, ensure_ascii=False)),
        _rounded(loss.score_loss),
        loss.task,
        loss.item_id,
    ]


def _rounded(loss: float | None) -> float | None:
    return None if loss is None else round(loss, _DIGITS)


def write_rows(folder: Path, table: pa.Table, rows: Sequence[Row], names: Mapping[str, str]) -> None:
    """`rows/rows.parquet` from the table; of its rows, `traces/<task>.parquet` and `predictions/<task>.csv`.

    `names` are what tables call variants, and so do the predictions; the parquet files have labels.
    """
    path = folder / ROWS
    path.parent.mkdir()
    path.write_bytes(sealed_parquet(table))
    for name in ("traces", "predictions"):
        (folder / name).mkdir()
    for task, of_task in grouped(rows, task_of).items():
        _write_traces(folder / "traces" / f"{file_name(task)}.parquet", of_task)
        _write_predictions(folder / "predictions" / f"{file_name(task)}.csv", of_task, names)


def write_report(folder: Path, page: ReportPage) -> list[str]:
    """`report.html` and `figures/`; returns the figures' names, quality before memory."""
    folder.joinpath(DEFAULT_NAME).write_text(page.html, encoding="utf-8")
    figures = figure_files(page.settings)
    folder.joinpath("figures").mkdir()
    for name, svg in figures.items():
        folder.joinpath("figures", name).write_text(svg, encoding="utf-8")
    return list(figures)


def figure_files(pages: Sequence[SettingPage]) -> dict[str, str]:
    """File name → SVG of every figure: the Pareto front, then quality and memory, the mean over tasks before the tasks."""
    colors = page_colors((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    files = {}
    for page in pages:
        prefix = f"{file_name(page.title)}-" if len(pages) > 1 else ""
        panels = [] if page.front is None else [("Pareto front", "", page.front)]
        panels += [(measure, "", panel) for measure, group in page.quality for panel in group]
        panels += [("memory", " (black: full cache, no context)", panel) for _, panel in page.traces if panel]
        for measure, explained, panel in panels:
            name = f"{measure.partition(' (')[0]}/{panel.title}".replace(" ", "_")
            title = f"{measure}, {panel.title}{explained}"
            # Names are unique: two tasks that differ only in signs get a digest each.
            files[f"{prefix}{file_name(name)}.svg"] = standalone(panel.svg, title, page.legend, colors)
    return files


def _write_traces(path: Path, rows: Sequence[Row]) -> None:
    entries = [
        dict(zip(_TRACE_SCHEMA.names, (row["item_id"], row["variant"], *entry), strict=True))
        for row in rows
        for entry in json.loads(row["trace"] or "[]")
    ]
    if entries:
        pq.write_table(pa.Table.from_pylist(entries, schema=_TRACE_SCHEMA), path)


def _write_predictions(path: Path, rows: Sequence[Row], names: Mapping[str, str]) -> None:
    """A table that MLflow shows in the browser, with an item's answers under all variants below each other."""
    order = {item_id: place for place, item_id in enumerate(dict.fromkeys(row["item_id"] for row in rows))}
    # The csv module writes its own line ends; a second translation would leave blank lines on Windows.
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_PREDICTION_COLUMNS)
        for row in sorted(rows, key=lambda it: order[it["item_id"]]):
            answers = json.dumps(row["answers"] or [], ensure_ascii=False)
            shown = {**row, "answers": answers, "variant": names.get(row["variant"], row["variant"])}
            writer.writerow(cells(shown[name] for name in _PREDICTION_COLUMNS))
