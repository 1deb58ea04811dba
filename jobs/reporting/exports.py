"""All numbers of a results folder for other programs: CSV, a line per variant and task, or JSON with the headline.

What is not known is empty in CSV and null in JSON, never 0. Shares and scores are 0 to 1, NLL and KL in nats per token.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from evaluators.statistics.intervals import Interval
from jobs.analysis.ranking.order import in_order
from jobs.analysis.storage import Storage
from jobs.analysis.summary import MacroMean, ResultSummary, TaskSummary
from jobs.analysis.variant_summary import Kept, VariantSummary
from jobs.console.spreadsheet import cell
from jobs.reporting.notation import shown_name
from jobs.results.grouping import Setting


def records(summary: ResultSummary, sort: str) -> list[dict[str, Any]]:
    """A record per variant and task, then, with `task` None, of each mean over several tasks; all have the same keys."""
    found: list[dict[str, Any]] = []
    for setting in summary.settings():
        tasks = [it for it in summary.tasks if it.setting == setting]
        for task in tasks:
            found += [_of_task(task, it) for it in in_order(task.variants, sort)]
        if len(tasks) > 1:
            found += [_of_mean(setting, it) for it in in_order(summary.macro_means(setting), sort)]
    return found


def as_csv(summary: ResultSummary, sort: str) -> str:
    """The records under one line of names."""
    found = records(summary, sort)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]) if found else ["variant"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in it.items()} for it in found)
    return text.getvalue()


def as_json(summary: ResultSummary, sort: str, headline: Sequence[str]) -> str:
    """The records with the headline and the sum of all planned rows."""
    counted = ("planned", "ok", "truncated", "failed", "missing", "other")
    rows = {name: getattr(summary, f"num_{name}") for name in counted}
    return json.dumps(
        {"headline": list(headline), "rows": rows, "variants": records(summary, sort)},
        indent=1,
        ensure_ascii=False,
        allow_nan=False,
    )


def _of_task(task: TaskSummary, it: VariantSummary) -> dict[str, Any]:
    return {
        **_head(task.setting, task.task, it),
        "rows": it.num_rows,
        "finished": it.num_finished,
        "contexts": task.num_clusters,
        "degenerate": it.num_degenerate,
        **_interval("answer_nll", it.answer_nll),
        "nll_recovered": it.nll_recovered,
        **_interval("kl", it.kl),
        **_interval("top1_agreement", it.top1_agreement),
        **_interval("score", it.score_interval),
        "kept_ratio": it.kept_ratio,
        **_memory(it.storage),
    }


def _of_mean(setting: Setting, it: MacroMean) -> dict[str, Any]:
    return {
        **_head(setting, None, it),
        **dict.fromkeys(("rows", "finished", "contexts", "degenerate")),
        **_mean_alone("answer_nll", it.answer_nll),
        "nll_recovered": it.nll_recovered,
        **_mean_alone("kl", it.kl),
        **_mean_alone("top1_agreement", it.top1_agreement),
        **_mean_alone("score", it.score),
        "kept_ratio": it.kept_ratio,
        **_memory(it.storage),
    }


def _head(setting: Setting, task: str | None, it: Kept) -> dict[str, Any]:
    return {
        "model": setting.model_name,
        "query_mode": setting.query_mode,
        "execution": setting.execution,
        "task": task,
        "variant": it.label,
        "name": shown_name(it),
        "policy": it.policy,
    }


def _interval(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return _mean_alone(name, None)
    low, high = interval.ends or (None, None)
    return {name: interval.mean, f"{name}_low": low, f"{name}_high": high}


def _mean_alone(name: str, mean: float | None) -> dict[str, float | None]:
    return {name: mean, f"{name}_low": None, f"{name}_high": None}


def _memory(storage: Storage) -> dict[str, Any]:
    names = ("form", "held_share", "held_bytes", "read_share", "bits_k", "bits_v", "position_bytes")
    return {name: getattr(storage, name) for name in names}
