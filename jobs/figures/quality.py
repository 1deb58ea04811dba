"""Quality against measured memory: a line per policy over its budgets, the reference rows across."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from evaluators.statistics import Interval
from jobs.figures.series import policies_of, series_name
from jobs.figures.style import FAINT, INK, SeriesStyle, look, new_panel, to_svg
from jobs.report_numbers import score_interval
from jobs.summary import MacroMean, TaskSummary
from jobs.variant_summary import VariantSummary
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT

SCORE, NLL, RECOVERED = "score", "answer NLL (nats/token)", "NLL recovered"
_HIGHEST = {SCORE: 100.0, RECOVERED: 1.0}
_REFERENCE_DASHES: dict[str, str | tuple[int, tuple[int, ...]]] = {FULL: "-", FULL_AA: "--", NO_CONTEXT: ":"}
_NAMED_REFERENCES = {FULL: "full cache", NO_CONTEXT: "no context"}  # the A/A line lies on the full one
_DODGE_PERCENT, _LONE_DODGE_PERCENT = 0.9, 2.5  # policies at one budget would hide each other's whiskers
_WIDE_PERCENT = 50.0  # from here on the axis ends at the full cache


@dataclass(frozen=True, slots=True)
class Point:
    """One variant: measured slots in percent of the full cache, mean and 95 % interval in the panel's unit."""

    label: str
    kept_percent: float
    mean: float
    low: float | None
    high: float | None


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
            + f" at {it.kept_percent:.1f} % kept"
            for it in points
        )


def task_panel(task: TaskSummary, measure: str) -> QualityPanel | None:
    """The panel of one task; None when no policy has the measure."""
    read = _score_point if measure == SCORE else _nll_point
    points = [(variant, read(variant)) for variant in task.variants]
    known = [(variant, point) for variant, point in points if point is not None]
    by_label = {variant.label: point for variant, point in known}
    policies = {variant.label for variant in policies_of(task)}
    lines = _lines((series_name(variant), point) for variant, point in known if variant.label in policies)
    references = {label: by_label[label] for label in _REFERENCE_DASHES if label in by_label}
    return QualityPanel(task.task, measure, lines, references) if lines else None


def macro_panel(
    tasks: Sequence[TaskSummary],
    means: Sequence[MacroMean],
    measure: str,
    intervals: Mapping[str, Interval],
) -> QualityPanel | None:
    """The mean over tasks, each weighing the same; None for one task or where a task lacks the measure.

    `intervals` are by label, in the unit of the rows; a variant without one is drawn without whiskers.
    """
    if len(tasks) < 2:
        return None
    series = {variant.label: series_name(variant) for task in tasks for variant in policies_of(task)}
    found = [(it.label, _macro_point(it, measure, intervals.get(it.label))) for it in means]
    points = {label: point for label, point in found if point is not None}
    lines = _lines((series[label], point) for label, point in points.items() if label in series)
    references = {label: points[label] for label in _REFERENCE_DASHES if label in points}
    title = f"mean of {len(tasks)} tasks"
    return QualityPanel(title, measure, lines, references) if lines else None


def draw(panel: QualityPanel, styles: Mapping[str, SeriesStyle], name: str) -> Markup:
    """The panel as SVG."""
    with look():
        figure, axes = new_panel()
        _draw_references(axes, panel)
        is_one_budget = all(len(points) == 1 for points in panel.lines.values())
        dodge = _LONE_DODGE_PERCENT if is_one_budget else _DODGE_PERCENT
        for index, (series, points) in enumerate(panel.lines.items()):
            shift = (index - (len(panel.lines) - 1) / 2) * dodge
            _draw_line(axes, points, styles[series], shift)
        _set_axes(axes, panel)
        title = f"{panel.measure} against memory, {panel.title}"
        return to_svg(figure, name, title, panel.description)


def _lines(points: Iterable[tuple[str, Point]]) -> dict[str, tuple[Point, ...]]:
    lines: dict[str, list[Point]] = {}
    for series, point in points:
        lines.setdefault(series, []).append(point)
    return {
        series: tuple(sorted(line, key=lambda point: point.kept_percent)) for series, line in lines.items()
    }


def _score_point(variant: VariantSummary) -> Point | None:
    return _point(variant, score_interval(variant), lambda value: 100 * min(max(value, 0.0), 1.0))


def _nll_point(variant: VariantSummary) -> Point | None:
    return _point(variant, variant.answer_nll, lambda value: max(value, 0.0))


def _point(
    variant: VariantSummary, interval: Interval | None, shown: Callable[[float], float]
) -> Point | None:
    if interval is None or variant.kept_ratio is None:
        return None
    low, high = (None if end is None else shown(end) for end in (interval.low, interval.high))
    return Point(variant.shown_label, 100 * variant.kept_ratio, shown(interval.mean), low, high)


def _macro_point(mean: MacroMean, measure: str, interval: Interval | None) -> Point | None:
    value = {SCORE: mean.score, NLL: mean.answer_nll, RECOVERED: mean.nll_recovered}[measure]
    if value is None or mean.kept_ratio is None:
        return None
    factor, highest = (100, 100.0) if measure == SCORE else (1, float("inf"))
    ends = (None, None) if interval is None else (interval.low, interval.high)
    low, high = (None if end is None else min(max(factor * end, 0.0), highest) for end in ends)
    return Point(mean.shown_label, 100 * mean.kept_ratio, factor * value, low, high)


def _draw_references(axes: Axes, panel: QualityPanel) -> None:
    for label, point in panel.references.items():
        if label == FULL and point.low is not None and point.high is not None:
            axes.axhspan(point.low, point.high, color=INK, alpha=0.08, linewidth=0)
        axes.axhline(point.mean, color=INK, linestyle=_REFERENCE_DASHES[label], linewidth=1.1, alpha=0.75)
        if label in _NAMED_REFERENCES:
            _name_reference(axes, panel, label)


def _name_reference(axes: Axes, panel: QualityPanel, label: str) -> None:
    """Write a line's name inside the panel, on the side where the A/A line does not strike it through."""
    means = {name: point.mean for name, point in panel.references.items()}
    is_high = means[label] == max(means[name] for name in _NAMED_REFERENCES if name in means)
    beside = [means[label], *([means[FULL_AA]] if label == FULL and FULL_AA in means else [])]
    axes.annotate(
        _NAMED_REFERENCES[label],
        (1, min(beside) if is_high else max(beside)),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -3 if is_high else 3),
        textcoords="offset points",
        ha="right",
        va="top" if is_high else "bottom",
        fontsize="small",
    )


def _draw_line(axes: Axes, points: Sequence[Point], style: SeriesStyle, shift: float) -> None:
    x = [point.kept_percent + shift for point in points]
    axes.plot(
        x,
        [point.mean for point in points],
        color=style.color,
        marker=style.marker,
        markersize=6.5,
        linewidth=1.6,
    )
    for at, point in zip(x, points, strict=True):
        if point.low is not None and point.high is not None:
            axes.vlines(at, point.low, point.high, color=style.color, linewidth=1.3, alpha=0.8)


def _set_axes(axes: Axes, panel: QualityPanel) -> None:
    most = max(point.kept_percent for line in panel.lines.values() for point in line)
    axes.set_xlim(0, 101 if most > _WIDE_PERCENT else most * 1.2 + 1)
    axes.set_xlabel("slots kept, measured (% of the full cache)")
    axes.set_ylabel(panel.measure)
    if panel.measure in _HIGHEST:
        highest = _HIGHEST[panel.measure]
        low = min(0.0, *(it.mean for line in panel.lines.values() for it in line))
        axes.set_ylim(low - 0.03 * highest, highest * 1.05)
    else:
        axes.set_ylim(bottom=0)
    axes.tick_params(length=0, color=FAINT)
