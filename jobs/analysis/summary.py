"""What a sweep's rows say, one table per task, and where every planned row went.

Pure over the parquet rows. Rows of another query mode, model or execution are never in one table, and rows of other
settings that lie in the same folder are counted, not mixed in.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from evaluators.statistics.intervals import Interval
from evaluators.statistics.macro_average import TaskPairs, macro_difference
from jobs.analysis.storage import Storage, mean_storage
from jobs.analysis.variant_summary import (
    Budgeted,
    NllScale,
    VariantSummary,
    is_named_by_outcome,
    mean_of,
    summarize_variant,
    without_setup,
)
from jobs.results.grouping import Setting, grouped, setting_of, task_of
from jobs.results.schema import DONE_STATUSES, FAILED, OK, TRUNCATED, Row
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT, REFERENCE_LABELS

_SHOWN_FIRST = (FULL, FULL_AA, NO_CONTEXT)


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One table. `num_clusters` counts different contexts; `has_scale`: the full cache beats having no context.

    `num_cut_items` had a prompt that was too long for the model or the settings, and lost a part of it.
    """

    setting: Setting
    task: str
    variants: tuple[VariantSummary, ...]
    num_items: int
    num_clusters: int
    is_too_few: bool
    has_scale: bool
    num_cut_items: int


@dataclass(frozen=True, slots=True)
class MacroMean:
    """One variant over all tasks of a setting, every task weighing the same; None unless every task has it."""

    label: str
    policy: str
    answer_nll: float | None
    nll_recovered: float | None
    kl: float | None
    top1_agreement: float | None
    score: float | None
    kept_ratio: float | None
    kv_bytes: float | None
    storage: Storage


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed rows that share variant, phase and type, with one of their messages."""

    label: str
    phase: str
    error_type: str
    message: str
    num_rows: int


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """How many finished rows one kind of device computed; `name` is None where they do not tell it."""

    device: str
    name: str | None
    num_rows: int


@dataclass(frozen=True, slots=True)
class ResultSummary:
    """All tables, and the sum: planned = ok + truncated + failed + missing. `num_other` rows were left out."""

    tasks: tuple[TaskSummary, ...]
    failures: tuple[FailureGroup, ...]
    num_planned: int
    num_ok: int
    num_truncated: int
    num_failed: int
    num_missing: int
    num_other: int
    devices: tuple[DeviceRows, ...]

    def settings(self) -> list[Setting]:
        """The different settings there are tables of."""
        return sorted({task.setting for task in self.tasks})

    def macro_means(self, setting: Setting) -> tuple[MacroMean, ...]:
        """Means over the tasks of one setting, for the variants that are in any of its tables."""
        tasks = [task for task in self.tasks if task.setting == setting]
        labels = list(dict.fromkeys(variant.label for task in tasks for variant in task.variants))
        return tuple(_macro_mean(label, tasks) for label in labels)


def summarize(rows: Sequence[Row], num_planned: int | None = None, num_other: int = 0) -> ResultSummary:
    """Sum up planned rows. `num_planned` counts those not yet there as well; None: all that were planned are there."""
    num_planned = len(rows) if num_planned is None else num_planned
    counts = Counter(row["status"] for row in rows)
    groups = grouped(rows, lambda row: (setting_of(row), task_of(row)))
    return ResultSummary(
        tasks=tuple(_summarize_task(setting, task, group) for (setting, task), group in groups.items()),
        failures=_failures(rows),
        num_planned=num_planned,
        num_ok=counts[OK],
        num_truncated=counts[TRUNCATED],
        num_failed=counts[FAILED],
        num_missing=num_planned - len(rows),
        num_other=num_other,
        devices=_devices(rows),
    )


def _summarize_task(setting: Setting, task: str, rows: Sequence[Row]) -> TaskSummary:
    by_label = grouped(rows, lambda row: str(row["variant"]))
    labels = list(dict.fromkeys([label for label in _SHOWN_FIRST if label in by_label] + list(by_label)))
    scale = NllScale.of(by_label)
    # Asked of the whole task: were it asked of each variant, one column would mix counts with means.
    is_binary = all(row["score"] in (None, 0.0, 1.0) for row in rows)
    variants = tuple(summarize_variant(label, by_label[label], scale, is_binary) for label in labels)
    intervals = [variant.answer_nll or variant.score for variant in variants]
    return TaskSummary(
        setting=setting,
        task=task,
        variants=variants,
        num_items=len({row["item_id"] for row in rows}),
        # Of finished rows alone: a context on which everything failed carries no interval.
        num_clusters=len({row["cluster_id"] for row in rows if row["status"] in DONE_STATUSES}),
        is_too_few=any(interval is not None and interval.is_too_few for interval in intervals),
        has_scale=scale.is_usable,
        num_cut_items=len({row["item_id"] for row in rows if row["status"] == TRUNCATED}),
    )


def _macro_mean(label: str, tasks: Sequence[TaskSummary]) -> MacroMean:
    found = [variant for task in tasks for variant in task.variants if variant.label == label]
    # A mean over the tasks a variant happens to have cannot stand beside one over all of them.
    is_whole = len(found) == len(tasks)

    def mean(read: Callable[[VariantSummary], float | None]) -> float | None:
        values = [value for value in map(read, found) if value is not None]
        return statistics.fmean(values) if is_whole and len(values) == len(found) else None

    return MacroMean(
        label=label,
        policy=found[0].policy,
        answer_nll=mean(lambda it: mean_of(it.answer_nll)),
        nll_recovered=mean(lambda it: it.nll_recovered),
        kl=mean(lambda it: mean_of(it.kl)),
        top1_agreement=mean(lambda it: mean_of(it.top1_agreement)),
        score=mean(lambda it: mean_of(it.score)),
        kept_ratio=mean(lambda it: it.kept_ratio),
        kv_bytes=mean(lambda it: it.kv_bytes),
        storage=mean_storage([it.storage for it in found] if is_whole else []),
    )


def _devices(rows: Iterable[Row]) -> tuple[DeviceRows, ...]:
    done = [row for row in rows if row["status"] in DONE_STATUSES and row["device"] is not None]
    groups = grouped(done, lambda row: (row["device"], row["device_name"]))
    return tuple(DeviceRows(device, name, len(group)) for (device, name), group in groups.items())


def _failures(rows: Iterable[Row]) -> tuple[FailureGroup, ...]:
    failed = [row for row in rows if row["status"] == FAILED]
    groups = grouped(failed, lambda row: (row["variant"], row["failure_phase"], row["failure_type"]))
    return tuple(
        FailureGroup(label, phase, error_type, group[0]["failure_message"] or "", len(group))
        for (label, phase, error_type), group in groups.items()
    )


def macro_intervals(rows: Sequence[Row], column: str) -> dict[str, Interval]:
    """Label → mean over the tasks of `rows` (one setting), for the variants that have a number on every task."""
    tasks = {task_of(row) for row in rows}
    known = [row for row in rows if row["status"] in DONE_STATUSES and row[column] is not None]
    found = {}
    for label, of_label in grouped(known, lambda row: str(row["variant"])).items():
        by_task = grouped(of_label, task_of)
        if by_task.keys() == tasks:
            found[label] = macro_difference(
                [_task_pairs(group, column) for group in by_task.values()]
            ).interval
    return found


def _task_pairs(rows: Sequence[Row], column: str) -> TaskPairs:
    # Differences to 0, so that a mean over tasks gets its interval in the same way as a difference over tasks.
    return TaskPairs([row[column] for row in rows], [0.0] * len(rows), [row["cluster_id"] for row in rows])


def series_name(variant: Budgeted) -> str:
    """The variant's name without its budget, or without the set-up that led to what it kept; a form stays in it."""
    label = without_setup(variant.label) if is_named_by_outcome(variant) else variant.label
    budget = _budget_in_label(variant.budget_asked)
    # A budget may be "like:snapkv@0.5+fp8", signs and all, so its own text is looked for before any sign is.
    if budget and f"@{budget}" in label:
        return label.replace(f"@{budget}", "", 1)
    # A label of the user's own spells the budget as it likes, or has none.
    name, _, rest = label.partition("@")
    _, plus, form = rest.partition("+")
    return f"{name.partition(' (')[0]}{plus}{form}"


def _budget_in_label(asked: str | None) -> str:
    """How labels spell the budget that a row holds as JSON; "" for none, and for one that refers to a spelt-out variant."""
    match json.loads(asked or "null"):
        case {"kept_ratio": float(ratio)} | {"kept_ratio": int(ratio)}:
            return repr(float(ratio))
        case {"slots": int(num_slots)}:
            return str(num_slots)
        case {"like": str(label)}:
            return f"like:{label}"
        case {"bytes": {"like": str(label)}}:
            return f"bytes:like:{label}"
        case {"bytes": float(ratio)}:
            return f"bytes:{ratio!r}"
    return ""


def policies_of(task: TaskSummary) -> list[VariantSummary]:
    """The variants that are no reference rows."""
    return [variant for variant in task.variants if variant.label not in REFERENCE_LABELS]


def series_names(tasks: Iterable[TaskSummary]) -> list[str]:
    """The names of all series of these tasks, each once, in the order of the tables."""
    return list(dict.fromkeys(series_name(variant) for task in tasks for variant in policies_of(task)))
