"""All that a tracker is told of a results folder, made of the rows that its report is made of.

What was computed, scored again or broken off is told alike: nothing here knows who wrote the rows.
"""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from rich.console import Console

from jobs.analysis.differences import Difference, differences_to_full
from jobs.analysis.summary import ResultSummary, summarize
from jobs.reporting.facts import run_facts, without_passwords
from jobs.reporting.page import SHOWN_COLUMNS, ReportPage, render_page
from jobs.reporting.terminal import render
from jobs.results.grouping import setting_of
from jobs.results.planned import planned_rows, planned_table
from jobs.results.schema import ResultError, Row
from jobs.results.store import ResultStore
from jobs.tracking.description import summary_text, sweep_description, variant_description
from jobs.tracking.files import write_report, write_rows, write_texts
from jobs.tracking.final_metrics import (
    charted_traces,
    flat_params,
    listed_keys,
    sweep_readings,
    variant_readings,
)
from jobs.tracking.tracker import RunStatus, SweepReport, TrackedSweep, TrackedVariant, VariantReport
from kvmerger.variants import REFERENCE_LABELS

UNKNOWN = "not known"
_TABLE_COLUMNS = 140
_NUM_PICTURES = 2  # in the description; the others are in the report and in `figures/`
_MS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class MirrorContent:
    """A results folder, read once. `table` has the planned rows, and `rows` what is shown of them, in the plan's order."""

    name: str
    table: pa.Table
    rows: Sequence[Row]
    summary: ResultSummary
    differences: Sequence[Difference]
    meta: dict[str, Any]
    settings_yaml: str

    @classmethod
    def read(cls, store: ResultStore) -> MirrorContent:
        """Raises ResultError: the folder cannot be read."""
        table, planned = store.read_table(), store.read_plan()
        rows = planned_rows(table, planned, heavy=(*SHOWN_COLUMNS, "seconds"))
        settings_yaml = store.read_settings_text()
        name = (yaml.safe_load(settings_yaml) or {}).get("name", "sweep")
        return cls(
            name,
            planned_table(table, planned),
            rows,
            summarize(table, planned),
            differences_to_full(rows),
            store.read_run_meta(),
            settings_yaml,
        )

    def page(self) -> ReportPage:
        """The report."""
        return render_page(self.rows, self.summary, self.meta, self.settings_yaml)

    def report(self, status: RunStatus, page: ReportPage | None, folder: Path) -> SweepReport:
        """Everything for the end of the sweep; its files are written to `folder`, without `page` only the small ones."""
        table = _text_table(self.summary)
        facts = self._facts()
        summary_md = summary_text(self.name, facts, self.summary, self.differences, table)
        write_texts(folder, summary_md, self.settings_yaml, self.environment())
        figures: list[str] = []
        if page is not None:
            figures = write_report(folder, page)
            write_rows(folder, self.table, self.rows)
        traces = charted_traces(self.rows)
        variants = {
            label: VariantReport(
                readings,
                traces.get(label, ()),
                variant_description(label, self.summary, self.differences),
            )
            for label, readings in variant_readings(self.summary, self.differences, self.rows).items()
        }
        description = sweep_description(self.name, facts, self.summary, self.differences, _best(figures))
        return SweepReport(
            status,
            description,
            sweep_readings(self.summary, self.rows),
            variants,
            listed_keys(self.summary),
            folder,
            is_hurried=page is None,
        )

    def environment(self) -> dict[str, Any]:
        """What the numbers were made with."""
        return {
            "git_commit": self.meta.get("git_commit"),
            "versions": self.meta.get("versions", {}),
            "command": self.meta.get("args", []),
            "started_at_s": self.meta.get("started_at_s"),
            "sweep_id": self.meta.get("sweep_id"),
            "driver_platform": platform.platform(),
            **{
                name: sorted({row[name] for row in self.rows if row[name]})
                for name in ("model", "model_revision", "dtype", "device", "scorer")
            },
        }

    def _facts(self) -> str:
        told = []
        for it in run_facts(self.rows, self.summary, self.meta, "").settings:
            setting = it.setting
            told.append(
                f"{setting.model_name} ({it.dtype}, {it.device}), {setting.query_mode.replace('_', '-')}, "
                f"{setting.execution}, {it.num_variants} variants on {it.num_items} items "
                f"({it.num_contexts} contexts); commit {(self.meta.get('git_commit') or UNKNOWN)[:12]}"
            )
        return "; ".join(told) or "no row has been stored"


def tracked_sweep(
    meta: Mapping[str, Any],
    settings: Mapping[str, Any],
    variants: Mapping[str, TrackedVariant],
    shared: Mapping[str, str],
) -> TrackedSweep:
    """The sweep for the tracker's start. `settings` are the resolved ones; `shared` are tags that all its runs carry."""
    tracking = settings.get("tracking") or {}
    policies = [it for label, it in variants.items() if label not in REFERENCE_LABELS]
    tags = {
        **shared,
        "policy": _each_once(it.tags["policy"] for it in policies),
        "budget": _each_once(it.tags["budget"] for it in policies),
        "baseline": "false",
    }
    return TrackedSweep(
        sweep_id=meta["sweep_id"],
        name=settings["name"],
        experiment=tracking.get("experiment") or settings["name"],
        variants={label: TrackedVariant({**shared, **it.tags}, it.params) for label, it in variants.items()},
        tags=tags,
        params=flat_params(settings),
        git_commit=meta.get("git_commit"),
        started_at_ms=int(meta["started_at_s"] * _MS_PER_S) if meta.get("started_at_s") else None,
    )


def shared_tags(
    *, mode: str, execution: str, model: str, model_revision: str | None, git_commit: str | None
) -> dict[str, str]:
    """The tags by which runs of one kind are found."""
    return {
        "mode": mode,
        "execution": execution,
        "model": model,
        "model_revision": model_revision or UNKNOWN,
        "git_commit": git_commit or UNKNOWN,
    }


def tracked_variant(
    policy: str, budget: Any, version: str | None, params: Mapping[str, Any]
) -> TrackedVariant:
    """`budget` as rows hold it: None, or a mapping with what was asked."""
    return TrackedVariant(
        tags={"policy": policy, "budget": budget_text(budget), "policy_version": version or UNKNOWN},
        params={key: str(value) for key, value in flat_params(params).items()},
    )


def budget_text(budget: Any) -> str:
    """A budget in one word: "0.5", "512", "like kvmerger@0.5", or "none" for a reference row."""
    match budget:
        case {"kept_ratio": ratio}:
            return f"{ratio:g}"
        case {"slots": num_slots}:
            return str(num_slots)
        case {"like": label}:
            return f"like {label if isinstance(label, str) else json.dumps(label)}"
    return "none"


def sweep_of_folder(content: MirrorContent, folder: Path) -> TrackedSweep:
    """The sweep of the results in `folder`, as its latest run would have started it.

    Raises:
        ResultError: the folder lacks what a sweep leaves there.
    """
    settings = yaml.safe_load(content.settings_yaml)
    if not content.rows or not settings or "sweep_id" not in content.meta:
        raise ResultError(
            f"{folder} lacks the rows, settings.yaml or run_meta.json of a sweep; name a sweep's output_dir"
        )
    settings_of_rows = {setting_of(row) for row in content.rows}
    if len(settings_of_rows) > 1:
        raise ResultError(
            f"{folder} holds rows of {len(settings_of_rows)} settings and no plan.json to choose by"
        )
    setting = settings_of_rows.pop()
    variants = {
        row["variant"]: tracked_variant(
            row["policy"],
            json.loads(row["budget_asked"] or "null"),
            row["policy_version"],
            json.loads(row["policy_params"] or "{}"),
        )
        for row in sorted(content.rows, key=lambda row: row["variant"] not in REFERENCE_LABELS)
    }
    shared = shared_tags(
        mode=setting.query_mode,
        execution=setting.execution,
        model=without_passwords(setting.model),
        model_revision=setting.model_revision,
        git_commit=content.meta.get("git_commit"),
    )
    return tracked_sweep(content.meta, settings, variants, shared)


def _each_once(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _best(figures: Sequence[str]) -> list[str]:
    """What the description shows: quality first, then memory."""
    memory = [it for it in figures if it.startswith("memory")]
    quality = [it for it in figures if it not in memory]
    return [*quality[: _NUM_PICTURES - bool(memory)], *memory[:1]]


def _text_table(summary: ResultSummary) -> str:
    console = Console(file=io.StringIO(), width=_TABLE_COLUMNS, color_system=None)
    with console.capture() as captured:
        console.print(render(summary, _TABLE_COLUMNS))
    return captured.get()
