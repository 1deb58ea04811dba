"""Two results of the same items, A and B, or two variants of one: pairs, differences B - A, and what was dropped.

Pure over result rows, as `jobs.results.planned.planned_rows` gives them. A is the reference; each metric's variants x
tasks are one family of Holm's correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evaluators.hints import nearest_name_hint
from evaluators.statistics.noninferiority import MarginResult, judge_margin
from jobs.analysis.comparability import (
    ComparisonError,
    check_comparable,
    differences_to_tell,
    run_key,
    stored_differently,
)
from jobs.analysis.differences import NO_SCALE, Difference, TaskComparison, judge, noise_pairs
from jobs.analysis.pairing import METRICS, SCORE, ComparedMetric, Pairs, pair, summed
from jobs.analysis.variant_summary import NllScale
from jobs.results.grouping import grouped, setting_of, task_of
from jobs.results.schema import Row
from kvmerger.variants import REFERENCE_LABELS

RowsByLabel = Mapping[str, Sequence[Row]]
_LARGEST_LOSS = 1.0  # of a score, which lies between 0 and 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of a comparison. `differences` are B - A; `skipped` and `warnings` are sentences for the reader.

    `margins` maps a place in `differences` to whether B's score there is no worse than the margin.
    """

    name_a: str
    name_b: str
    differences: tuple[Difference, ...]
    margins: Mapping[int, MarginResult]
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]

    def sum_of(self, metric: ComparedMetric) -> tuple[int, dict[str, int]]:
        """How many pairs of (item, variant) have both numbers, and how many have not, by reason."""
        of_tasks = [it for it in self.differences if it.metric is metric and it.task is not None]
        return sum(it.num_pairs for it in of_tasks), summed(it.dropped for it in of_tasks)


@dataclass(frozen=True, slots=True)
class _TaskSides:
    """All rows of one task in A and in B, by label; `has_scale`: in both, the full cache beats having no context."""

    task: str
    a: RowsByLabel
    b: RowsByLabel
    has_scale: bool


def compare_folders(
    rows_a: Sequence[Row], rows_b: Sequence[Row], labels: Sequence[str], margin: float
) -> Comparison:
    """Compare the variants both have, or `labels`. `margin` is in the score's unit, 0 to 1.

    Raises:
        ComparisonError: nothing in common, an unknown label, or results that differ in what pairs depend on.
    """
    keys = check_comparable(rows_a, rows_b)
    shared_a, shared_b = ([row for row in rows if run_key(row) in keys] for rows in (rows_a, rows_b))
    in_a, in_b = (dict.fromkeys(row["variant"] for row in rows) for rows in (shared_a, shared_b))
    common = [label for label in in_a if label in in_b]
    for label in labels:
        if label not in common:
            raise ComparisonError(f"{label!r} is not in both results. {nearest_name_hint(label, common)}")
    # References are compared only where there is nothing else, as between two runs of the full cache alone.
    chosen = labels or [label for label in common if label not in REFERENCE_LABELS] or common
    if not chosen:
        raise ComparisonError(f"no variant is in both: A has {', '.join(in_a)}; B has {', '.join(in_b)}.")
    skipped = []
    for name, mine, other in (("A", in_a, in_b), ("B", in_b, in_a)):
        alone = [label for label in mine if label not in other]
        if alone and not labels:  # who named the variants knows which others are left out
            skipped.append(f"only in {name}: {', '.join(alone)}")
    num_other = len(rows_a) + len(rows_b) - len(shared_a) - len(shared_b)
    if num_other:
        skipped.append(f"{num_other} rows of models or query modes that only one of them has")
    return _compared(
        ("A", "B"),
        (shared_a, shared_b),
        [(label, label) for label in chosen],
        margin,
        tuple(skipped),
        differences_to_tell(shared_a, shared_b),
    )


def compare_variants(rows: Sequence[Row], policy: str, against: str, margin: float) -> Comparison:
    """Compare two variants of one folder: A is `against`, B is `policy`.

    Raises:
        ComparisonError: a label the folder does not have, or one variant against itself.
    """
    labels = {row["variant"] for row in rows}
    for label in (policy, against):
        if label not in labels:
            raise ComparisonError(f"there is no variant {label!r}. {nearest_name_hint(label, labels)}")
    if policy == against:
        raise ComparisonError(f"{policy!r} against itself differs in nothing; name another variant.")
    names = (against, policy)
    # One folder may have gone on with other versions, or on another device, when the second variant was added.
    mine, other = ([row for row in rows if row["variant"] == label] for label in names)
    told = (*differences_to_tell(mine, other, names), *stored_differently(mine, other, names))
    return _compared(names, (rows, rows), [(policy, against)], margin, (), told)


def _compared(
    names: tuple[str, str],
    sides: tuple[Sequence[Row], Sequence[Row]],
    pairings: Sequence[tuple[str, str]],
    margin: float,
    skipped: tuple[str, ...],
    warnings: tuple[str, ...],
) -> Comparison:
    of_a, of_b = (grouped(rows, run_key) for rows in sides)
    found: list[Difference] = []
    for key in (key for key in of_b if key in of_a):
        tasks = _tasks(of_a[key], of_b[key])
        for metric in METRICS:
            comparisons = [
                _comparison(it, metric, label, in_a, names)
                for label, in_a in pairings
                for it in tasks
                if label in it.b or in_a in it.a
            ]
            found += judge(setting_of(of_b[key][0]), metric, comparisons)
    margins = {
        index: _margin(it, margin) for index, it in enumerate(found) if it.metric is SCORE and it.paired
    }
    return Comparison(*names, tuple(found), margins, skipped, warnings)


def _tasks(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> list[_TaskSides]:
    by_task_a, by_task_b = (grouped(rows, task_of) for rows in (rows_a, rows_b))
    found = []
    for task in dict.fromkeys([*by_task_a, *by_task_b]):
        sides = [grouped(of.get(task, ()), lambda row: row["variant"]) for of in (by_task_a, by_task_b)]
        has_scale = all(NllScale.of(by_label).is_usable for by_label in sides)
        found.append(_TaskSides(task, sides[0], sides[1], has_scale))
    return found


def _comparison(
    sides: _TaskSides, metric: ComparedMetric, label: str, label_in_a: str, names: tuple[str, str]
) -> TaskComparison:
    name_a, name_b = names
    of_a, of_b = sides.a.get(label_in_a, ()), sides.b.get(label, ())
    noise = [noise_pairs(by_label, metric) for by_label in (sides.a, sides.b)]
    return TaskComparison(
        task=sides.task,
        label=label,
        reference=name_a,
        pairs=pair(of_b, of_a, metric.column, names=(name_b, name_a)),
        noise=max(noise, key=_total_difference),  # a difference must stand out of the noisier side
        has_scale=sides.has_scale,
    )


def _total_difference(pairs: Pairs) -> float:
    """Mean absolute difference of the pairs; below 0 where there are none, so that any other noise is larger."""
    if not pairs.item_ids:
        return -1.0
    return sum(abs(a - b) for a, b in zip(pairs.policy, pairs.reference, strict=True)) / len(pairs.item_ids)


def _margin(it: Difference, margin: float) -> MarginResult:
    assert it.paired is not None
    # The exact bound for few differing items needs what one item can lose, and a mean over tasks has no such number.
    result = judge_margin(it.paired, margin, _LARGEST_LOSS if it.task is not None else None)
    return result if it.has_scale else replace(result, verdict="inconclusive", reason=NO_SCALE)
