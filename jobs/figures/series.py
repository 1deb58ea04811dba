"""A policy is one series over all its budgets, the same in every figure."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.summary import TaskSummary
from jobs.variant_summary import VariantSummary
from kvmerger.variants import REFERENCE_LABELS


def series_name(variant: VariantSummary) -> str:
    """The variant's name without its budget; what a policy kept by itself is no part of its name either."""
    return variant.shown_label.partition("@")[0].partition(" (")[0]


def policies_of(task: TaskSummary) -> list[VariantSummary]:
    """The variants that are no reference rows."""
    return [variant for variant in task.variants if variant.label not in REFERENCE_LABELS]


def series_names(tasks: Iterable[TaskSummary]) -> list[str]:
    """Every series once, in the order of the tables."""
    return list(dict.fromkeys(series_name(variant) for task in tasks for variant in policies_of(task)))
