"""A finished sweep in the tracker's terms: the same numbers as the table, under names that can be charted."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from jobs.report import render
from jobs.summary import ResultSummary, TaskSummary
from jobs.variant_summary import VariantSummary, mean_of

_MARKDOWN_COLUMNS = 140


def table_markdown(summary: ResultSummary) -> str:
    """The table as a block of text of fixed width."""
    console = Console(file=io.StringIO(), width=_MARKDOWN_COLUMNS, color_system=None)
    with console.capture() as captured:
        console.print(render(summary, _MARKDOWN_COLUMNS))
    return f"```\n{captured.get().rstrip()}\n```\n"


def row_counts(summary: ResultSummary) -> dict[str, float]:
    """Where the planned rows went."""
    return {
        "rows_planned": summary.num_planned,
        "rows_ok": summary.num_ok,
        "rows_truncated": summary.num_truncated,
        "rows_failed": summary.num_failed,
        "rows_missing": summary.num_missing,
    }


def final_metrics(summary: ResultSummary) -> dict[str, dict[str, float | None]]:
    """Label → metric → value, a metric per task and column; None where there is nothing to say."""
    metrics: dict[str, dict[str, float | None]] = {}
    for task in summary.tasks:
        for variant in task.variants:
            metrics.setdefault(variant.label, {}).update(_metrics_of(task, variant))
    return metrics


def flat_params(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `section.key` → text; lists by their place."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        nested = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(nested, Mapping):
            flat |= flat_params({str(inner): it for inner, it in nested.items()}, f"{name}.")
        else:
            flat[name] = str(value)
    return flat


def _metrics_of(task: TaskSummary, variant: VariantSummary) -> dict[str, float | None]:
    intervals = {
        "score": variant.score,
        "answer_nll": variant.answer_nll,
        "kl_mean": variant.kl,
        "top1_agreement": variant.top1_agreement,
    }
    values = {name: mean_of(interval) for name, interval in intervals.items()}
    values |= {
        "nll_recovered": variant.nll_recovered,
        "kept_ratio": variant.kept_ratio,
        "kv_bytes": variant.kv_bytes,
    }
    return {f"final/{task.task}/{name}": value for name, value in values.items()}
