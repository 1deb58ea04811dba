"""Variants down, tasks across: how much of what the context is worth is left, tinted by what is lost, marked by verdict.

A table rather than a picture, as the differences are. A tint is no verdict: only a mark is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.analysis.differences import Difference
from jobs.analysis.pairing import ANSWER_NLL, SCORE, ComparedMetric
from jobs.analysis.summary import TaskSummary
from jobs.analysis.variant_summary import VariantSummary
from jobs.reporting.notation import plain, shown_difference, shown_value, signed

MARKS = {"better": "▲", "worse": "▼", "inconclusive": ""}
_FULL_POINTS = 100.0


@dataclass(frozen=True, slots=True)
class HeatCell:
    """`tint` is 0 (nothing lost) to 1 (all of it); `told` are the words for a pointer."""

    text: str
    tint: float
    mark: str
    verdict: str
    told: str


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One measure of one setting. Rows are (label, name, a cell a task; None where nothing is known)."""

    measure: str
    words: str
    tasks: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[HeatCell | None, ...]], ...]


def heat_maps(
    tasks: Sequence[TaskSummary], differences: Sequence[Difference], names: Mapping[str, str]
) -> list[HeatMap]:
    """The maps that have a number, of what is recovered and of the score, for several tasks of one setting.

    `names` are label → the tables' name, of the policies alone, in the order of the rows. One task has no map: the ranked
    table is its only column.
    """
    if len(tasks) < 2:
        return []
    judged = {(it.label, it.task, it.metric.column): it for it in differences}
    by_task = [{it.label: it for it in task.variants} for task in tasks]
    maps = []
    for metric, measure, words in (
        (
            ANSWER_NLL,
            "NLL recovered",
            "share of what the context is worth to answer NLL; verdicts are of answer NLL",
        ),
        (SCORE, "score", "points of 100 over or under the full cache's"),
    ):
        rows = tuple(
            (
                label,
                name,
                tuple(
                    _cell(variants.get(label), judged.get((label, task.task, metric.column)), metric)
                    for task, variants in zip(tasks, by_task, strict=True)
                ),
            )
            for label, name in names.items()
        )
        if any(cell for _, _, cells in rows for cell in cells):
            maps.append(HeatMap(measure, words, tuple(task.task for task in tasks), rows))
    return maps


def _cell(variant: VariantSummary | None, it: Difference | None, metric: ComparedMetric) -> HeatCell | None:
    if variant is None or it is None or it.paired is None:
        return None
    points = metric.unit_factor * it.paired.interval.mean
    if metric is SCORE:
        text, lost = signed(points, "{:+.1f}"), -points / _FULL_POINTS
    elif variant.nll_recovered is None:
        return None
    else:
        text, lost = plain(variant.nll_recovered), 1 - variant.nll_recovered
    return HeatCell(text, min(max(lost, 0.0), 1.0), MARKS[it.verdict], it.verdict, _told(it, metric))


def _told(it: Difference, metric: ComparedMetric) -> str:
    assert it.paired is not None
    shown = shown_difference(metric, it.paired.interval)
    verdict = it.verdict if not it.reason else f"{it.verdict}: {it.reason}"
    return (
        f"{it.label} on {it.task}: {metric.name} {shown_value(metric, it.policy_mean)}, full cache "
        f"{shown_value(metric, it.reference_mean)}, difference {shown.on_one_line()}, {it.num_pairs} pairs; {verdict}"
    )
