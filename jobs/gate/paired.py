"""Checks that infer from items to more items like them: one-sided non-inferiority, with the A/A noise as a floor.

A pass must show that the loss is within the margin, and a fail that it is beyond it. Anything else is inconclusive, with a
reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evaluators.statistics.intervals import MIN_CLUSTERS, PairedDifference, paired_difference
from evaluators.statistics.macro_average import TaskPairs, macro_difference
from evaluators.statistics.noise_floor import NoiseFloor, floor_of
from evaluators.statistics.noninferiority import MarginResult, excess_loss_p_value, judge_margin
from jobs.analysis.pairing import summed
from jobs.gate.check import Check, Kind, Verdict, worst_of

INSIDE_NOISE = "the loss is inside the A/A noise"


@dataclass(frozen=True, slots=True)
class Scale:
    """What a check measures in. `shown` turns a difference into the reader's unit; `margin` and `reach` are not yet shown.

    No two means are further apart than `reach`.
    """

    kind: Kind
    metric: str
    unit: str
    margin: float
    shown: Callable[[float], float]
    largest_loss: float | None = None
    reach: float = math.inf

    def bound(self, gain: float) -> float:
        """A bound of the loss as it is shown: Student's t knows no ends, and gives scores a loss of more than all."""
        return self.shown(min(max(-gain, -self.reach), self.reach))


@dataclass(frozen=True, slots=True)
class PairedTask:
    """One task's pairs, turned so that more is better: a is tonight. `noise` are its A/A pairs, None without.

    `is_identical`: every row of tonight is bit for bit the baseline's.
    """

    task: str
    item_ids: tuple[str, ...]
    pairs: TaskPairs
    noise: TaskPairs | None
    dropped: dict[str, int]
    is_identical: bool = False


def paired_check(scale: Scale, label: str, tasks: Sequence[PairedTask]) -> Check:
    """The check of one task, or of the mean over several; all have pairs."""
    pairs = [it.pairs for it in tasks]
    difference = _difference(pairs)
    noises = [it.noise for it in tasks if it.noise is not None]
    # A floor over some of the tasks is noise of another quantity than the mean.
    floor = floor_of(_difference(noises)) if len(noises) == len(tasks) else None
    largest_loss = scale.largest_loss if len(tasks) == 1 else None
    result = judge_margin(difference, scale.margin, largest_loss)
    is_identical = all(it.is_identical for it in tasks)
    verdict, reason = _verdict(result, difference, floor, is_identical)
    losses = [scale.shown(b - a) for it in pairs for a, b in zip(it.a, it.b, strict=True)]
    worst, num_worse = worst_of([item for it in tasks for item in it.item_ids], losses)
    # Without `best`, `worst` is the exact bound, which stands where nothing differs at all.
    has_no_spread = difference.interval.has_no_spread and result.best is not None
    has_enough = difference.interval.num_clusters >= MIN_CLUSTERS
    return Check(
        kind=scale.kind,
        metric=scale.metric,
        unit=scale.unit,
        label=label,
        task=tasks[0].task if len(tasks) == 1 else None,
        margin=scale.shown(scale.margin),
        verdict=verdict,
        reason=reason,
        num_items=difference.interval.num_items,
        num_contexts=difference.interval.num_clusters,
        dropped=summed(it.dropped for it in tasks),
        loss=scale.shown(-result.mean),
        least_loss=None if result.best is None or has_no_spread else scale.bound(result.best),
        most_loss=None if result.worst is None or has_no_spread else scale.bound(result.worst),
        has_no_spread=has_no_spread,
        noise=None if floor is None else scale.shown(floor.size),
        # None keeps a check out of the family: with too few contexts it can never fail, and would only weaken the rest.
        p_value=excess_loss_p_value(pairs, scale.margin) if has_enough else None,
        worst_items=worst,
        num_worse=num_worse,
    )


def passed_everywhere(mean: Check) -> Check:
    """The mean over tasks that all pass: an open mean becomes a pass, and keeps its numbers."""
    # If no task loses more than the margin, their mean cannot.
    if mean.verdict != "inconclusive":
        return mean
    return replace(mean, verdict="pass", reason="every task passes on its own")


def _difference(tasks: Sequence[TaskPairs]) -> PairedDifference:
    """Of one task as `jobs/compare.py` shows it, of several the mean over tasks."""
    if len(tasks) > 1:
        return macro_difference(tasks)
    return paired_difference(tasks[0].a, tasks[0].b, tasks[0].clusters)


def _verdict(
    result: MarginResult, difference: PairedDifference, floor: NoiseFloor | None, is_identical: bool
) -> tuple[Verdict, str]:
    interval = difference.interval
    # Without this an unchanged night stays open wherever its items are too few to resolve the margin.
    if is_identical and interval.num_clusters >= MIN_CLUSTERS:
        return "pass", f"bit for bit the baseline on all {interval.num_items} items"
    # A loss that the full cache shows against itself, in another batch shape, is no loss of the code's.
    if result.verdict == "fail" and floor is not None and floor.covers(result.mean):
        return "inconclusive", INSIDE_NOISE
    return result.verdict, result.reason
