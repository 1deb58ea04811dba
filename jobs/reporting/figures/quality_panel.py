"""What a panel of quality against memory shows: points by series, and the reference rows across."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from evaluators.statistics.intervals import Interval
from jobs.analysis.summary import MacroMean, TaskSummary, policies_of, series_name
from jobs.analysis.variant_summary import Kept, VariantSummary
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT

_EDGE, _ROOM = 0.05, 0.12  # of the axis: beside a scale's ends, and beside the data with their names
_LEAST_DATA_SHARE = 0.4

NameOf = Callable[[Kept], str]
SCORE, NLL, RECOVERED = "score", "answer NLL (nats/token)", "NLL recovered"
HIGHEST = {SCORE: 100.0, RECOVERED: 1.0}
REFERENCE_DASHES: dict[str, str | tuple[int, tuple[int, ...]]] = {FULL: "-", FULL_AA: "--", NO_CONTEXT: ":"}


@dataclass(frozen=True, slots=True)
class Point:
    """One variant: mean and 95 % interval in the panel's unit.

    Bytes held and slots kept are measured, also in percent of the full cache's; slots are None where rows do not tell them.
    """

    label: str
    held_bytes: float
    held_percent: float
    slots_percent: float | None
    mean: float
    low: float | None
    high: float | None

    @property
    def memory(self) -> str:
        """Bytes and, where they are another share, slots, in words."""
        slots = "" if self.slots_percent is None else f"{self.slots_percent:.1f} %"
        held = f"{self.held_percent:.1f} %"
        return f"{held} of the bytes" + (f", {slots} of the slots" if slots not in ("", held) else "")


@dataclass(frozen=True, slots=True)
class QualityPanel:
    """One task (or the mean over tasks), one measure. `lines` are by series, points ascending in memory."""

    title: str
    measure: str
    lines: Mapping[str, tuple[Point, ...]]
    references: Mapping[str, Point]

    @property
    def description(self) -> str:
        """All points in words, for those who do not see the figure."""
        points = [*self.references.values(), *(it for line in self.lines.values() for it in line)]
        return "; ".join(
            f"{it.label}: {it.mean:.3g}"
            + ("" if it.low is None or it.high is None else f" (95 % {it.low:.3g} to {it.high:.3g})")
            + f" at {it.memory}"
            for it in points
        )


def shown_range(panel: QualityPanel) -> tuple[float, float]:
    """Where the axis of the measure begins and ends: scores and shares have a scale of their own, NLL goes by the data.

    NLL: from the full cache over the policies, with their intervals unless these are far wider than the means lie apart, to
    no context, which is left out where all others would share less than two fifths of the axis. Of policies the smaller part
    that is worse than no context lies beyond the axis, or one of them would squeeze all others into a corner.
    """
    if panel.measure in HIGHEST:
        highest = HIGHEST[panel.measure]
        # Room below 0 and above the highest value, or markers on the edge are cut in half.
        low = -_EDGE * highest
        # What is worse than no context is told below its line, for which there must be room.
        is_worse = any(it.mean < low for line in panel.lines.values() for it in line)
        return (-_ROOM * highest if is_worse else low), highest * (1 + _EDGE)
    points = _no_worse_than_no_context(panel)
    points += [panel.references[FULL]] if FULL in panel.references else []
    low, high = min(it.mean for it in points), max(it.mean for it in points)
    span = high - low
    # Of wide intervals as much as the means themselves take, on either side.
    low = max(low - span, min(it.mean if it.low is None else it.low for it in points))
    high = min(high + span, max(it.mean if it.high is None else it.high for it in points))
    if NO_CONTEXT in panel.references:
        blank = panel.references[NO_CONTEXT].mean
        if (max(high, blank) - min(low, blank)) * _LEAST_DATA_SHARE <= high - low:
            low, high = min(low, blank), max(high, blank)
    # One value has no span: any does, but not one of no width.
    room = _ROOM * (high - low or abs(high) or 1.0)
    return max(0.0, low - room), high + room


def beyond(panel: QualityPanel) -> list[Point]:
    """The policies whose means lie beyond the axis: figures show them at its edge, with an arrow and the number."""
    low, high = shown_range(panel)
    return [it for line in panel.lines.values() for it in line if not low <= it.mean <= high]


def _no_worse_than_no_context(panel: QualityPanel) -> list[Point]:
    """Policies that decide where an axis of NLL ends: all of them where most are worse than no context, or none is known."""
    points = [point for line in panel.lines.values() for point in line]
    if NO_CONTEXT not in panel.references:
        return points
    worst = max(panel.references[it].mean for it in (FULL, NO_CONTEXT) if it in panel.references)
    inside = [it for it in points if it.mean <= worst]
    return inside if len(inside) * 2 >= len(points) else points


def task_panel(task: TaskSummary, measure: str, name_of: NameOf) -> QualityPanel | None:
    """The panel of one task; None when no policy has the measure. `name_of` is how readers know a variant."""
    read = _score_point if measure == SCORE else _nll_point
    points = [(variant, read(variant, name_of)) for variant in task.variants]
    known = [(variant, point) for variant, point in points if point is not None]
    by_label = {variant.label: point for variant, point in known}
    policies = {variant.label for variant in policies_of(task)}
    lines = _lines((series_name(variant), point) for variant, point in known if variant.label in policies)
    references = {label: by_label[label] for label in REFERENCE_DASHES if label in by_label}
    return QualityPanel(task.task, measure, lines, references) if lines else None


def macro_panel(
    tasks: Sequence[TaskSummary],
    means: Sequence[MacroMean],
    measure: str,
    intervals: Mapping[str, Interval],
    name_of: NameOf,
) -> QualityPanel | None:
    """The panel of the means over tasks; None for one task or where a task lacks the measure.

    `intervals` are by label, in the unit of the rows; a variant without one is drawn without whiskers.
    """
    if len(tasks) < 2:
        return None
    series = {variant.label: series_name(variant) for task in tasks for variant in policies_of(task)}
    found = [(it.label, _macro_point(it, measure, intervals.get(it.label), name_of)) for it in means]
    points = {label: point for label, point in found if point is not None}
    lines = _lines((series[label], point) for label, point in points.items() if label in series)
    references = {label: points[label] for label in REFERENCE_DASHES if label in points}
    title = f"mean of {len(tasks)} tasks"
    return QualityPanel(title, measure, lines, references) if lines else None


def _lines(points: Iterable[tuple[str, Point]]) -> dict[str, tuple[Point, ...]]:
    lines: dict[str, list[Point]] = {}
    for series, point in points:
        lines.setdefault(series, []).append(point)
    return {
        series: tuple(sorted(line, key=lambda point: point.held_percent)) for series, line in lines.items()
    }


def _score_point(variant: VariantSummary, name_of: NameOf) -> Point | None:
    return _point(variant, name_of, variant.score_interval, lambda value: 100 * min(max(value, 0.0), 1.0))


def _nll_point(variant: VariantSummary, name_of: NameOf) -> Point | None:
    return _point(variant, name_of, variant.answer_nll, lambda value: max(value, 0.0))


def _point(
    variant: VariantSummary, name_of: NameOf, interval: Interval | None, shown: Callable[[float], float]
) -> Point | None:
    if interval is None or not _is_measured(variant):
        return None
    low, high = (None if end is None else shown(end) for end in interval.ends or (None, None))
    return Point(name_of(variant), *_memory(variant), shown(interval.mean), low, high)


def _macro_point(mean: MacroMean, measure: str, interval: Interval | None, name_of: NameOf) -> Point | None:
    value = {SCORE: mean.score, NLL: mean.answer_nll, RECOVERED: mean.nll_recovered}[measure]
    if value is None or not _is_measured(mean):
        return None
    factor, highest = (100, 100.0) if measure == SCORE else (1, float("inf"))
    # Student's t knows no bounds: its ends may lie where the quantity cannot.
    ends = (interval and interval.ends) or (None, None)
    low, high = (None if end is None else min(max(factor * end, 0.0), highest) for end in ends)
    return Point(name_of(mean), *_memory(mean), factor * value, low, high)


def _is_measured(it: VariantSummary | MacroMean) -> bool:
    return it.storage.held_share is not None and it.storage.held_bytes is not None


def _memory(it: VariantSummary | MacroMean) -> tuple[float, float, float | None]:
    share, num_bytes = it.storage.held_share, it.storage.held_bytes
    assert share is not None and num_bytes is not None
    return num_bytes, 100 * share, None if it.kept_ratio is None else 100 * it.kept_ratio
