"""All that a tracker is told of a sweep at its start and, from the findings of its folder, at its end.

Rows just computed, scored again or left by a broken-off run are told alike: nothing here knows who wrote them.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.analysis.folder.findings import Findings
from jobs.analysis.summary import ResultSummary
from jobs.analysis.worst_items import worst_items
from jobs.console.addresses import hidden_in
from jobs.console.printing import text_of
from jobs.reporting.facts import setting_facts
from jobs.reporting.headline import headline_of
from jobs.reporting.notation import shown_mode, shown_name
from jobs.reporting.page import ReportPage
from jobs.reporting.table import WIDE_COLUMNS
from jobs.reporting.terminal import render
from jobs.results.grouping import setting_of
from jobs.results.schema import ResultError
from jobs.tracking.datasets import tracked_datasets
from jobs.tracking.description import summary_text, sweep_description, variant_description
from jobs.tracking.files import WORST_ITEMS, write_report, write_rows, write_texts, write_worst_items
from jobs.tracking.final_metrics import (
    best_policy,
    charted_traces,
    flat_params,
    listed_keys,
    ranking,
    sweep_readings,
    variant_readings,
)
from jobs.tracking.tracker import RunStatus, SweepReport, TrackedSweep, TrackedVariant, VariantReport
from kvmerger.variants import REFERENCE_LABELS

_NOT_KNOWN = "not known"
_TOLD_COLUMNS = ("trace", "prediction", "answers", "prompt_tail", "seconds")
_COMMIT_DIGITS = 12
_NUM_PICTURES = 2  # in the description; the others are in the report and in `figures/`
_MS_PER_S = 1000


def sweep_report(findings: Findings, status: RunStatus, page: ReportPage | None, folder: Path) -> SweepReport:
    """Everything for the end of the sweep; its files are written to `folder`, without `page` only the small ones."""
    summary, differences, facts = findings.summary, findings.differences, _facts(findings)
    table, told = _text_table(summary), headline_of(findings)
    summary_md = summary_text(findings.name, facts, told, table)
    write_texts(folder, summary_md, findings.settings_yaml, environment(findings))
    # Only here, after the page has let go of its own heavy columns.
    rows = findings.rows_with(*_TOLD_COLUMNS)
    names = table_names(summary)
    figures: list[str] = []
    if page is not None:
        figures = write_report(folder, page)
        write_worst_items(folder, worst_items(rows), names)
        write_rows(folder, findings.table, rows, names)
    traces = charted_traces(rows, findings.planned)
    variants = {
        label: VariantReport(
            readings,
            traces.get(label, ()),
            name=names.get(label, ""),
            description=variant_description(label, summary, differences),
            tags=_form_of(label, summary),
        )
        for label, readings in variant_readings(summary, differences, rows).items()
    }
    return SweepReport(
        status,
        sweep_description(findings.name, facts, summary, differences, _best(figures), told),
        sweep_readings(summary, differences, rows),
        variants,
        columns=listed_keys(summary),
        ranking=ranking(summary),
        # Of all items or of none: a digest of those that an interrupted sweep came to would be of no dataset.
        datasets=[]
        if summary.num_missing
        else tracked_datasets(rows, findings.settings, findings.meta.get("data_read", ())),
        tables=[] if page is None else [WORST_ITEMS],
        folder=folder,
        is_hurried=page is None,
        tags={"device_name": _device_names(summary)},
        own_tags=_best_tag(summary, names) | links_of(findings.meta),
    )


def table_names(summary: ResultSummary) -> dict[str, str]:
    """Label → what tables call the variant; of several tasks the name that it has in their mean."""
    means = (mean for setting in summary.settings() for mean in summary.macro_means(setting))
    return {mean.label: shown_name(mean) for mean in means}


def _best_tag(summary: ResultSummary, names: Mapping[str, str]) -> dict[str, str]:
    best = best_policy(summary)
    return {} if best is None else {"best": names[best.label]}


def links_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """The tags that say in which Ray job the folder's latest run was; none of a run outside a cluster."""
    ray = meta.get("ray") or {}
    return {f"ray_{name}": str(value) for name, value in ray.items() if value}


def environment(findings: Findings) -> dict[str, Any]:
    """Code, libraries, command, model and devices that the numbers were made with."""
    meta = findings.meta
    return {
        "git_commit": meta.get("git_commit"),
        "versions": meta.get("versions", {}),
        "command": meta.get("args", []),
        "started_at_s": meta.get("started_at_s"),
        "sweep_id": meta.get("sweep_id"),
        "data_read": meta.get("data_read", []),
        "driver_platform": platform.platform(),
        **{
            name: sorted({row[name] for row in findings.rows if row[name]})
            for name in ("model", "model_revision", "dtype", "device", "device_name", "scorer")
        },
    }


def _form_of(label: str, summary: ResultSummary) -> dict[str, str]:
    """The tag of what the variant's rows are stored as; none where no row tells."""
    storages = [it.storage for task in summary.tasks for it in task.variants if it.label == label]
    forms = _each_once(it.form for it in storages if it.form)
    return {"form": forms} if forms else {}


def _device_names(summary: ResultSummary) -> str:
    return _each_once(it.name or _NOT_KNOWN for it in summary.devices) or _NOT_KNOWN


def _facts(findings: Findings) -> str:
    commit = (findings.meta.get("git_commit") or _NOT_KNOWN)[:_COMMIT_DIGITS]
    told = [
        f"{it.setting.model_name} ({it.dtype}, {it.device}), {shown_mode(it.setting)}, {it.setting.execution}, "
        f"{it.num_variants} variants on {it.num_items} items ({it.num_contexts} contexts); commit {commit}"
        for it in setting_facts(findings.rows)
    ]
    return "; ".join(told) or "no row has been stored"


def tracked_sweep(
    meta: Mapping[str, Any],
    settings: Mapping[str, Any],
    variants: Mapping[str, TrackedVariant],
    shared: Mapping[str, str],
) -> TrackedSweep:
    """The sweep for the tracker's start. `settings` are the resolved ones; `shared` are tags that all its runs carry."""
    tracking = settings.get("tracking") or {}
    # References are in every sweep, so their policies and budgets would tell no two apart in a list of runs.
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
        experiment_id=tracking.get("experiment_id"),
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
        "model": str(hidden_in(model)),
        "model_revision": model_revision or _NOT_KNOWN,
        "git_commit": git_commit or _NOT_KNOWN,
    }


def tracked_variant(
    policy: str, budget: Any, version: str | None, params: Mapping[str, Any]
) -> TrackedVariant:
    """Tags and parameters of one variant. `budget` is as rows hold it: None, or a mapping with what was asked."""
    return TrackedVariant(
        tags={"policy": policy, "budget": budget_text(budget), "policy_version": version or _NOT_KNOWN},
        params={key: str(value) for key, value in flat_params(params).items()},
    )


def budget_text(budget: Any) -> str:
    """A budget as variants' names spell it: "0.5", "512", "like:kvmerger@0.5", "bytes:0.2"; "none" for rows without one."""
    match budget:
        case {"kept_ratio": ratio}:
            return f"{ratio:g}"
        case {"slots": num_slots}:
            return str(num_slots)
        case {"like": label}:
            return _like(label)
        case {"bytes": {"like": label}}:
            return f"bytes:{_like(label)}"
        case {"bytes": float(ratio)}:
            return f"bytes:{ratio:g}"
    return "none"


def _like(label: Any) -> str:
    return f"like:{label if isinstance(label, str) else json.dumps(label)}"


def sweep_of_folder(findings: Findings, folder: Path) -> TrackedSweep:
    """The sweep of the results in `folder`, as its latest run would have started it.

    Raises:
        ResultError: the folder lacks what a sweep leaves there.
    """
    if not findings.rows or "name" not in findings.settings or "sweep_id" not in findings.meta:
        raise ResultError(
            f"{folder} lacks the rows, settings.yaml or run_meta.json of a sweep; name a sweep's output_dir"
        )
    settings_of_rows = {setting_of(row) for row in findings.rows}
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
        for row in sorted(findings.rows, key=lambda row: row["variant"] not in REFERENCE_LABELS)
    }
    shared = shared_tags(
        mode=setting.query_mode,
        execution=setting.execution,
        model=setting.model,
        model_revision=setting.model_revision,
        git_commit=findings.meta.get("git_commit"),
    )
    return tracked_sweep(findings.meta, findings.settings, variants, shared)


def _each_once(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _best(figures: Sequence[str]) -> list[str]:
    """The figures that the description shows: quality first, then memory."""
    memory = [it for it in figures if it.startswith("memory")]
    quality = [it for it in figures if it not in memory]
    return [*quality[: _NUM_PICTURES - bool(memory)], *memory[:1]]


def _text_table(summary: ResultSummary) -> str:
    return text_of(render(summary, WIDE_COLUMNS), WIDE_COLUMNS)
