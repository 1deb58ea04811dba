"""Quality tonight against the baseline: scores and answer NLL, per task and over the tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluators.statistics.macro_average import TaskPairs
from jobs.analysis.differences import NO_SCALE, noise_pairs
from jobs.analysis.pairing import ANSWER_NLL, METRICS, SCORE, ComparedMetric, Pairs
from jobs.gate.check import Check, TaskSides
from jobs.gate.paired import PairedTask, Scale, paired_check, passed_everywhere
from jobs.settings.gate import MarginSettings
from kvmerger.variants import NO_CONTEXT

_POINTS = 100
_SAME_COMPUTATION = ("status", "prediction", "score", "answer_nll", "kl_mean", "kv_bytes")
"""Columns that are equal, bit for bit, when the same code answered the same question."""


def quality_checks(sides: Sequence[TaskSides], labels: Sequence[str], margins: MarginSettings) -> list[Check]:
    """A check per variant, task and metric, and per variant and metric over the tasks where there are two or more."""
    found: list[Check] = []
    for metric in METRICS:
        for label in labels:
            usable: list[PairedTask] = []
            verdicts: set[str] = set()
            for it in sides:
                scale = _scale(metric, margins, it, label)
                reason = it.why_not_measured(label, metric.column) or ("" if it.has_scale else NO_SCALE)
                pairs = it.pairs(label, metric.column)
                if reason or not pairs.item_ids:
                    found.append(_unmeasured(scale, label, it.task, reason, pairs))
                    continue
                usable.append(_paired_task(it, label, metric, pairs))
                found.append(paired_check(scale, label, usable[-1:]))
                verdicts.add(found[-1].verdict)
            if len(usable) > 1:
                mean = paired_check(_scale(metric, margins), label, usable)
                found.append(passed_everywhere(mean) if verdicts == {"pass"} else mean)
    return found


def _scale(
    metric: ComparedMetric, margins: MarginSettings, sides: TaskSides | None = None, label: str = ""
) -> Scale:
    """`sides` and `label` say what one item can lose at most."""
    margin = margins.score_points / _POINTS if metric is SCORE else margins.nll_nats
    unit = "points" if metric is SCORE else "nats"
    largest = None if sides is None else 1.0 if metric is SCORE else _largest_nll_loss(sides, label)
    reach = 1.0 if metric is SCORE else math.inf
    return Scale("quality", metric.name, unit, margin, lambda loss: metric.unit_factor * loss, largest, reach)


def _largest_nll_loss(sides: TaskSides, label: str) -> float | None:
    """The most NLL that one item can lose, for the exact bound where few items differ. None if not known."""
    # NLL has no upper end. What the context is worth is taken for one, or what an item did lose tonight, if that is more.
    without = {row["item_id"]: row["answer_nll"] for row in sides.baseline.get(NO_CONTEXT, ())}
    losses = [
        without[row["item_id"]] - row["answer_nll"]
        for row in sides.baseline.get(label, ())
        if row["answer_nll"] is not None and without.get(row["item_id"]) is not None
    ]
    pairs = sides.pairs(label, ANSWER_NLL.column)
    losses += [now - before for now, before in zip(pairs.policy, pairs.reference, strict=True)]
    return max(losses) if losses and max(losses) > 0 else None


def _paired_task(sides: TaskSides, label: str, metric: ComparedMetric, pairs: Pairs) -> PairedTask:
    # The baseline's, not tonight's: a night may not raise the floor it is held to.
    noise = noise_pairs(sides.baseline, metric)
    return PairedTask(
        task=sides.task,
        item_ids=pairs.item_ids,
        pairs=_gains(metric, pairs),
        noise=_gains(metric, noise) if noise.item_ids else None,
        dropped=dict(pairs.dropped),
        is_identical=not pairs.dropped and _is_identical(sides, label),
    )


def _gains(metric: ComparedMetric, pairs: Pairs) -> TaskPairs:
    """More is better."""
    a, b = ([metric.gain(value) for value in side] for side in (pairs.policy, pairs.reference))
    return TaskPairs(a, b, pairs.clusters)


def _is_identical(sides: TaskSides, label: str) -> bool:
    # As dicts, so that missing and additional items count as a difference too.
    tonight, baseline = (
        {row["item_id"]: [row[column] for column in _SAME_COMPUTATION] for row in of.get(label, ())}
        for of in (sides.tonight, sides.baseline)
    )
    return tonight == baseline


def _unmeasured(scale: Scale, label: str, task: str, reason: str, pairs: Pairs) -> Check:
    """A check without a number: "not measured" with the baseline's reason, else "inconclusive"."""
    # What the baseline has and tonight lacks must not look like something that never was measured.
    return Check(
        kind=scale.kind,
        metric=scale.metric,
        unit=scale.unit,
        label=label,
        task=task,
        margin=scale.shown(scale.margin),
        verdict="not measured" if reason else "inconclusive",
        reason=reason or "no item has the number on both sides",
        dropped=dict(pairs.dropped),
    )
