"""What each variant loses against the full cache on the same items: mean, interval, test, noise floor and verdict.

Pure over result rows. A difference is policy - reference in the metric's own unit (score 0 to 1, NLL in nats per token).
A verdict stands only if Holm's p over its family and the 95 % interval agree, there are 50 contexts and 6 items that
differ, the full cache beats having no context on the task, and the difference is outside the A/A noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evaluators.statistics.intervals import PairedDifference, paired_difference
from evaluators.statistics.macro_average import macro_difference, macro_test
from evaluators.statistics.noise_floor import NoiseFloor, floor_of, noise_floor
from evaluators.statistics.noninferiority import too_few_reason
from evaluators.statistics.paired_tests import ALPHA, PairedTest, holm, paired_test
from jobs.analysis.pairing import METRICS, ComparedMetric, Pairs, pair, summed
from jobs.analysis.storage import Storage, mean_storage
from jobs.analysis.variant_summary import NllScale
from jobs.results.grouping import Setting, grouped, setting_of, task_of
from jobs.results.schema import Row
from kvmerger.variants import FULL, FULL_AA, REFERENCE_LABELS

Verdict = Literal["better", "worse", "inconclusive"]
NOT_SIGNIFICANT = "Holm's p is not below 0.05"
HOLDS_ZERO = "the 95 % interval holds 0"
# Also true where nobody measured it, as of answers without a gold answer's NLL.
NO_SCALE = "the full cache is not shown to beat having no context by an interval above 0"


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One variant against its reference on one task in one metric, not yet judged.

    `noise` are the A/A pairs of the same task and metric; `has_scale`: the full cache beats having no context there.
    """

    task: str
    label: str
    reference: str
    pairs: Pairs
    noise: Pairs
    has_scale: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """One variant against its reference in one metric on one task; `task` is None for the mean over `tasks`.

    `paired` holds the mean difference with its 95 % interval and how many items are higher, lower and equal. It is None,
    as are the means and p-values, where there is no pair; `dropped` says why. `adjusted_p` is Holm's over `family_size`
    tests: all comparisons x tasks of one metric in one setting, the means over tasks being a family of their own.
    `floor` is the A/A noise, None where it is not known. The storages, measured bytes among them, are means over the pairs
    (over tasks: of the tasks' means). `reason` says why a verdict is inconclusive, and is empty otherwise.
    """

    setting: Setting
    metric: ComparedMetric
    label: str
    reference: str
    task: str | None
    tasks: tuple[str, ...]
    num_pairs: int
    dropped: Mapping[str, int]
    policy_mean: float | None
    reference_mean: float | None
    policy_storage: Storage
    reference_storage: Storage
    paired: PairedDifference | None
    is_binary: bool
    p_value: float | None
    test: str | None
    adjusted_p: float | None
    family_size: int
    floor: NoiseFloor | None
    has_scale: bool
    verdict: Verdict
    reason: str

    @property
    def num_dropped(self) -> int:
        """Number of items that are in no pair although one side has them."""
        return sum(self.dropped.values())

    @property
    def flips(self) -> tuple[int, int] | None:
        """Of binary scores: (n10, n01), right only in the reference and right only in the policy; otherwise None."""
        if self.paired is None or not self.is_binary:
            return None
        return self.paired.num_lower, self.paired.num_higher


def differences_to_full(rows: Sequence[Row]) -> tuple[Difference, ...]:
    """Every variant against the `full` row in every setting, metric and task, and over the tasks where there are more.

    `rows` as `jobs.results.planned.planned_rows` gives them. Rows of different settings never meet.
    """
    labels = [it for it in dict.fromkeys(row["variant"] for row in rows) if it not in REFERENCE_LABELS]
    return differences_between(rows, [(label, FULL) for label in labels])


def differences_between(rows: Sequence[Row], pairings: Sequence[tuple[str, str]]) -> tuple[Difference, ...]:
    """Variants against each other: (label, reference label) pairs, such as merging against eviction at equal slots."""
    found: list[Difference] = []
    for setting, of_setting in grouped(rows, setting_of).items():
        by_task = {
            task: grouped(of_task, lambda row: str(row["variant"]))
            for task, of_task in grouped(of_setting, task_of).items()
        }
        has_scale = {task: NllScale.of(by_label).is_usable for task, by_label in by_task.items()}
        here = {row["variant"] for row in of_setting}
        # Where one of the two was never planned in a setting, there is nothing to compare and nothing to report.
        known = [(label, reference) for label, reference in pairings if label in here and reference in here]
        for metric in METRICS:
            comparisons = [
                _comparison(task, by_label, metric, (label, reference), has_scale[task])
                for label, reference in known
                for task, by_label in by_task.items()
            ]
            found += judge(setting, metric, comparisons)
    return tuple(found)


def judge(
    setting: Setting, metric: ComparedMetric, comparisons: Sequence[TaskComparison]
) -> tuple[Difference, ...]:
    """Verdicts of one metric in one setting: each comparison's, which are one family, then the means over the tasks.

    A mean is over the tasks with a scale, of two or more; a variant without pairs on one of them has none.
    """
    on_tasks = [_measured(setting, metric, it) for it in comparisons]
    by_variant: dict[tuple[str, str], list[TaskComparison]] = {}
    for it in comparisons:
        by_variant.setdefault((it.label, it.reference), []).append(it)
    macros = [_measured_macro(setting, metric, group) for group in by_variant.values()]
    # Two families: a mean over tasks repeats their data, and in one family it would be corrected for twice.
    return (*_with_verdicts(on_tasks), *_with_verdicts([it for it in macros if it is not None]))


def _comparison(
    task: str,
    by_label: Mapping[str, Sequence[Row]],
    metric: ComparedMetric,
    names: tuple[str, str],
    has_scale: bool,
) -> TaskComparison:
    label, reference = names
    pairs = pair(by_label.get(label, ()), by_label.get(reference, ()), metric.column, names)
    return TaskComparison(task, label, reference, pairs, noise_pairs(by_label, metric), has_scale)


def noise_pairs(by_label: Mapping[str, Sequence[Row]], metric: ComparedMetric) -> Pairs:
    """The A/A pairs of one task: the full cache in another batch shape against the full cache."""
    return pair(by_label.get(FULL_AA, ()), by_label.get(FULL, ()), metric.column, names=(FULL_AA, FULL))


def _measured(setting: Setting, metric: ComparedMetric, it: TaskComparison) -> Difference:
    pairs, noise = it.pairs, it.noise
    paired: PairedDifference | None = None
    test: PairedTest | None = None
    if pairs.item_ids:
        paired = paired_difference(pairs.policy, pairs.reference, pairs.clusters)
        test = paired_test(pairs.policy, pairs.reference, pairs.clusters)
    return Difference(
        setting=setting,
        metric=metric,
        label=it.label,
        reference=it.reference,
        task=it.task,
        tasks=(it.task,),
        num_pairs=len(pairs.item_ids),
        dropped=pairs.dropped,
        policy_mean=statistics.fmean(pairs.policy) if paired else None,
        reference_mean=statistics.fmean(pairs.reference) if paired else None,
        policy_storage=pairs.policy_storage,
        reference_storage=pairs.reference_storage,
        paired=paired,
        is_binary=pairs.is_binary,
        p_value=test.p_value if test else None,
        test=test.method if test else None,
        adjusted_p=None,
        family_size=0,
        floor=noise_floor(noise.policy, noise.reference, noise.clusters) if noise.item_ids else None,
        has_scale=it.has_scale,
        verdict="inconclusive",
        reason="",
    )


def _measured_macro(
    setting: Setting, metric: ComparedMetric, comparisons: Sequence[TaskComparison]
) -> Difference | None:
    """The mean over the tasks with a scale; None unless there are two and all of them have pairs."""
    usable = [it for it in comparisons if it.has_scale]
    if len(usable) < 2 or not all(it.pairs.item_ids for it in usable):
        return None
    tasks = [it.pairs.task_pairs for it in usable]
    test = macro_test(tasks)
    noise = [it.noise.task_pairs for it in usable if it.noise.item_ids]
    return Difference(
        setting=setting,
        metric=metric,
        label=usable[0].label,
        reference=usable[0].reference,
        task=None,
        tasks=tuple(it.task for it in usable),
        num_pairs=sum(len(it.pairs.item_ids) for it in usable),
        dropped=summed(it.pairs.dropped for it in usable),
        policy_mean=_mean(statistics.fmean(it.pairs.policy) for it in usable),
        reference_mean=_mean(statistics.fmean(it.pairs.reference) for it in usable),
        policy_storage=mean_storage([it.pairs.policy_storage for it in usable]),
        reference_storage=mean_storage([it.pairs.reference_storage for it in usable]),
        paired=macro_difference(tasks),
        is_binary=all(it.pairs.is_binary for it in usable),
        p_value=test.p_value,
        test=test.method,
        adjusted_p=None,
        family_size=0,
        # A floor over some of the tasks is noise of another quantity than the mean that is held against it.
        floor=floor_of(macro_difference(noise)) if len(noise) == len(usable) else None,
        has_scale=True,
        verdict="inconclusive",
        reason="",
    )


def _with_verdicts(family: Sequence[Difference]) -> list[Difference]:
    """The differences of one family with p-values corrected by Holm, and with verdicts."""
    # Without a pair there was no test, and a test that was not made must not cost the others any power.
    p_values = {index: it.p_value for index, it in enumerate(family) if it.p_value is not None}
    adjusted = holm(p_values)
    judged = []
    for index, it in enumerate(family):
        p_value = adjusted[index].adjusted_p if index in adjusted else None
        corrected = replace(it, adjusted_p=p_value, family_size=len(p_values))
        reason = _why_inconclusive(corrected)
        judged.append(
            replace(corrected, verdict="inconclusive" if reason else _side(corrected), reason=reason)
        )
    return judged


def _why_inconclusive(it: Difference) -> str:
    """The first thing that rules a verdict out; empty where there is one."""
    # From what no number of items would cure to what more items might: the first is the reason worth reading.
    if it.paired is None or it.adjusted_p is None:
        return "no item has both numbers"
    if not it.has_scale:
        return NO_SCALE
    too_few = too_few_reason(it.paired)
    if too_few:
        return too_few
    if it.floor is not None and it.floor.covers(it.paired.interval.mean):
        return "inside the A/A noise"
    if it.adjusted_p >= ALPHA:
        return NOT_SIGNIFICANT
    return HOLDS_ZERO if it.paired.verdict == "inconclusive" else ""


def _side(it: Difference) -> Verdict:
    assert it.paired is not None
    return "better" if it.metric.gain(it.paired.interval.mean) > 0 else "worse"


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    numbers = [value for value in known if value is not None]
    return statistics.fmean(numbers) if numbers and len(numbers) == len(known) else None
