"""Differences to the full cache: variants down, tasks across, each cell a dot on its interval.

A table rather than a picture: every cell has its numbers, and its dot lies on the scale of the whole table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evaluators.statistics.intervals import Interval
from jobs.analysis.differences import Difference
from jobs.analysis.pairing import ComparedMetric
from jobs.results.grouping import Setting
from kvmerger.variants import FULL_AA

_WIDTH, _HEIGHT, _MARGIN = 120, 14, 4  # of a cell's drawing, in its own units
MACRO = "mean of the tasks"
_SIGNS = {"better": "▲ better", "worse": "▼ worse", "inconclusive": ""}


@dataclass(frozen=True, slots=True)
class DifferenceCell:
    """One variant on one task. `verdict` is "better", "worse", "inconclusive", "no scale" or, of the A/A row, "noise"."""

    metric: ComparedMetric
    interval: Interval
    verdict: str
    note: str
    drawing: Markup


@dataclass(frozen=True, slots=True)
class DifferenceMap:
    """One metric of one setting; `rows` are (variant, its cells, one a task, None where there is no pair).

    `no_verdict` says, by task, what stands in the way of every verdict there.
    """

    setting: Setting
    metric: str
    unit: str
    is_lower_better: bool
    tasks: tuple[str, ...]
    no_verdict: Mapping[str, str]
    rows: tuple[tuple[str, tuple[DifferenceCell | None, ...]], ...]

    @property
    def is_empty(self) -> bool:
        """Whether no cell has a number."""
        return not any(cell for _, cells in self.rows for cell in cells)


def difference_maps(
    differences: Sequence[Difference],
    shown_names: Mapping[tuple[Setting, str], str],
    most_nll: float = math.inf,
) -> list[DifferenceMap]:
    """A map per setting and metric, answer NLL first; `shown_names` are the tables' names of variants.

    `most_nll` is about what no context costs more than the full cache, nats per token: farther off a dot becomes an arrow, or
    one variant would press all others onto 0.
    """
    keys = dict.fromkeys((it.setting, it.metric.column) for it in differences)
    maps = [
        _map([it for it in differences if (it.setting, it.metric.column) == key], shown_names, most_nll)
        for key in keys
    ]
    return sorted((it for it in maps if not it.is_empty), key=lambda it: not it.is_lower_better)


def _map(
    differences: Sequence[Difference], shown_names: Mapping[tuple[Setting, str], str], most_nll: float
) -> DifferenceMap:
    first = differences[0]
    factor = first.metric.unit_factor
    on_tasks = list(dict.fromkeys(it.task for it in differences if it.task is not None))
    tasks = [*([None] if any(it.task is None for it in differences) else []), *on_tasks]
    # One scale for all cells, so that their dots can be compared down and across; scores have a natural one.
    reach = min(_reach(differences), most_nll) if factor == 1 else factor
    shared = _shared_reasons(differences)
    cells = {
        (it.label, it.task): _cell(it, reach, has_note=(it.task or MACRO) not in shared)
        for it in differences
        if it.paired is not None
    }
    floors = {
        it.task: _drawn(it.metric, it.floor.difference.interval, reach, "noise", "")
        for it in differences
        if it.floor is not None
    }
    labels = dict.fromkeys(it.label for it in differences)
    lines = [(label, tuple(cells.get((label, task)) for task in tasks)) for label in labels]
    if floors:
        lines.append((FULL_AA, tuple(floors.get(task) for task in tasks)))
    return DifferenceMap(
        setting=first.setting,
        metric="score" if first.metric.is_higher_better else "answer NLL",
        unit="points of 100" if factor > 1 else "nats per token",
        is_lower_better=not first.metric.is_higher_better,
        tasks=tuple(MACRO if task is None else task for task in tasks),
        no_verdict=shared,
        rows=tuple((shown_names.get((first.setting, label), label), line) for label, line in lines),
    )


def _shared_reasons(differences: Sequence[Difference]) -> dict[str, str]:
    reasons: dict[str, set[str]] = {}
    for it in differences:
        reasons.setdefault(it.task or MACRO, set()).add(it.reason)
    # An empty reason is a verdict; a column of verdicts shares no reason.
    return {task: found.pop() for task, found in reasons.items() if len(found) == 1 and found != {""}}


def _reach(differences: Iterable[Difference]) -> float:
    """The largest distance from 0 that a cell of the table must show."""
    ends = [
        abs(end)
        for it in differences
        if it.paired is not None
        for end in (it.paired.interval.mean, it.paired.interval.low, it.paired.interval.high)
        if end is not None
    ]
    return max(ends, default=0.0) or 1.0  # all differences 0: any scale does, but not one of no width


def _cell(it: Difference, reach: float, *, has_note: bool) -> DifferenceCell:
    assert it.paired is not None
    note = _SIGNS[it.verdict] or (it.reason if has_note else "")
    return _drawn(it.metric, it.paired.interval, reach, it.verdict if it.has_scale else "no scale", note)


def _drawn(
    metric: ComparedMetric, interval: Interval, reach: float, verdict: str, note: str
) -> DifferenceCell:
    factor = metric.unit_factor
    low, high = (None if end is None else _cut(factor * end, reach) for end in interval.ends or (None, None))
    drawing = _whisker(factor * interval.mean, low, high, reach)
    return DifferenceCell(metric, interval, verdict, note, drawing)


def _cut(value: float, reach: float) -> float:
    return min(max(value, -reach), reach)


def _whisker(mean: float, low: float | None, high: float | None, reach: float) -> Markup:
    def x(value: float) -> str:
        return f"{_WIDTH / 2 + value / reach * (_WIDTH / 2 - _MARGIN):.1f}"

    middle = _HEIGHT / 2
    line = ""
    if low is not None and high is not None:
        line = f'<path d="M{x(low)} {middle:g}H{x(high)}"/>'
    dot = f'<circle cx="{x(mean)}" cy="{middle:g}" r="3.2"/>'
    if abs(mean) > reach:
        sign = 1 if mean > 0 else -1
        tip = _WIDTH if mean > 0 else 0
        line, dot = "", f'<path class="beyond" d="M{tip} {middle:g}l{-sign * 8}-4v8z"/>'
    return Markup(
        f'<svg class="dot" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">'
        f'<path d="M{_WIDTH / 2:g} 0V{_HEIGHT}"/>{line}{dot}</svg>'
    )
