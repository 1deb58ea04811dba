"""The files beside a sweep's run: the report, all tables, what was asked and with what, figures, and every row.

Everything is written from the result folder's own rows, so what is mirrored is what the report says.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.reporting.facts import without_passwords
from jobs.reporting.figures.standalone import page_colors, standalone
from jobs.reporting.page import DEFAULT_NAME, TEMPLATES, ReportPage, SettingPage
from jobs.results.grouping import grouped, task_of
from jobs.results.schema import Row
from jobs.tracking.metrics import file_name

SUMMARY, SETTINGS, ENVIRONMENT = "summary.md", "settings.yaml", "environment.json"
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
_PREDICTION_COLUMNS = ("item_id", "variant", "score", "prediction", "answers", "answer_nll", "status")


def write_texts(folder: Path, summary_md: str, settings_yaml: str, environment: Mapping[str, Any]) -> None:
    """`summary.md`, `settings.yaml` and `environment.json`; passwords in addresses are taken out."""
    folder.joinpath(SUMMARY).write_text(summary_md, encoding="utf-8")
    folder.joinpath(SETTINGS).write_text(without_passwords(settings_yaml), encoding="utf-8")
    text = json.dumps(environment, indent=2, sort_keys=True)
    folder.joinpath(ENVIRONMENT).write_text(without_passwords(text) + "\n", encoding="utf-8")


def write_rows(folder: Path, table: pa.Table, rows: Sequence[Row]) -> None:
    """`rows/rows.parquet` from the table; of its rows, `traces/<task>.parquet` and `predictions/<task>.csv`."""
    path = folder / ROWS
    path.parent.mkdir()
    pq.write_table(table, path)
    for name in ("traces", "predictions"):
        (folder / name).mkdir()
    for task, of_task in grouped(rows, task_of).items():
        _write_traces(folder / "traces" / f"{file_name(task)}.parquet", of_task)
        _write_predictions(folder / "predictions" / f"{file_name(task)}.csv", of_task)


def write_report(folder: Path, page: ReportPage) -> list[str]:
    """`report.html` and `figures/`; returns the figures' names, quality before memory."""
    folder.joinpath(DEFAULT_NAME).write_text(page.html, encoding="utf-8")
    figures = figure_files(page.settings)
    folder.joinpath("figures").mkdir()
    for name, svg in figures.items():
        folder.joinpath("figures", name).write_text(svg, encoding="utf-8")
    return list(figures)


def figure_files(pages: Sequence[SettingPage]) -> dict[str, str]:
    """File name → SVG of every figure, the mean over tasks before the tasks and quality before memory."""
    colors = page_colors((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    files = {}
    for page in pages:
        prefix = f"{file_name(page.title)}-" if len(pages) > 1 else ""
        panels = [(measure, "", panel) for measure, group in page.quality for panel in group]
        panels += [("memory", " (black: full cache, no context)", panel) for _, panel in page.traces]
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


def _write_predictions(path: Path, rows: Sequence[Row]) -> None:
    """A table that MLflow shows in the browser, with an item's answers under all variants below each other."""
    order = {item_id: place for place, item_id in enumerate(dict.fromkeys(row["item_id"] for row in rows))}
    # The csv module writes its own line ends; a second translation would leave blank lines on Windows.
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_PREDICTION_COLUMNS)
        for row in sorted(rows, key=lambda it: order[it["item_id"]]):
            answers = json.dumps(row["answers"] or [], ensure_ascii=False)
            shown = {**row, "answers": answers}
            writer.writerow([shown[name] for name in _PREDICTION_COLUMNS])
