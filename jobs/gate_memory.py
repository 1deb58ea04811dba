"""Memory tonight against the baseline, item by item: bytes are measured, not sampled, so nothing is inferred."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from jobs.gate_check import Check, Verdict, worst_of
from jobs.gate_sides import TaskSides
from jobs.pairing import Pairs
from jobs.settings.gate import MarginSettings

_PERCENT = 100
_METRICS = {"kv_bytes": "KV bytes", "peak_bytes": "peak bytes"}


def memory_checks(sides: Sequence[TaskSides], labels: Sequence[str], margins: MarginSettings) -> list[Check]:
    """A check per variant, task and kind of memory: the mean growth over the items may not exceed the margin."""
    return [
        _check(it, label, column, margins.memory_percent)
        for column in _METRICS
        for label in labels
        for it in sides
    ]


def _check(sides: TaskSides, label: str, column: str, margin: float) -> Check:
    pairs = sides.pairs(label, column)
    reason, growth = sides.why_not_measured(label, column), _growth(pairs)
    verdict: Verdict = "not measured" if reason else "inconclusive"
    if not reason and growth:
        verdict = "fail" if statistics.fmean(growth) > margin else "pass"
    worst, num_worse = worst_of(pairs.item_ids, growth)
    return Check(
        kind="memory",
        metric=_METRICS[column],
        unit="%",
        label=label,
        task=sides.task,
        margin=margin,
        verdict=verdict,
        reason=reason or ("" if growth else "no item has the number on both sides"),
        num_items=len(growth),
        num_contexts=len(set(pairs.clusters)),
        dropped=dict(pairs.dropped),
        loss=statistics.fmean(growth) if growth else None,
        worst_items=worst,
        num_worse=num_worse,
    )


def _growth(pairs: Pairs) -> list[float]:
    """Percent by which each item grew; from nothing to something is infinitely much."""
    return [
        _PERCENT * (now / before - 1) if before else (float("inf") if now else 0.0)
        for now, before in zip(pairs.policy, pairs.reference, strict=True)
    ]
