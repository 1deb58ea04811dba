"""Quality against the bytes held: a line per policy over its budgets, the reference rows across.

Policies that all hold about the same would lie on each other there: they get a row each, by name, with the measured share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from jobs.reporting.figures.quality_panel import (
    NLL,
    REFERENCE_DASHES,
    Point,
    QualityPanel,
    beyond,
    shown_range,
)
from jobs.reporting.figures.style import FAINT, INK, SeriesStyle, look, new_panel, to_svg
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT

_NAMED_REFERENCES = {FULL: "full cache", NO_CONTEXT: "no context"}  # the A/A line lies on the full one
# Policies at one budget would hide each other's whiskers: points no further apart than the first number are moved by it,
# together by no more than the second. Others stay where they were measured.
_DODGE_PERCENT, _MOST_DODGED_PERCENT = 0.9, 6.0
_WIDE_PERCENT = 50.0  # from here on the axis ends at the full cache
_SAME_BYTES_PERCENT = (
    10.0  # of the full cache: whiskers of policies that are no further apart hide each other
)
_NAME_SHARE = 0.44  # of the panel's width, for "expected_attention (49.9 %)"
_CLOSE_LINES = 0.15  # of the axis: two names one under the other, with room
_NUMBER_SHARE = 0.12  # of the panel's width, for "↑ 12.3"
_ROW_INCHES, _FRAME_INCHES = 0.24, 0.75


def draw(panel: QualityPanel, styles: Mapping[str, SeriesStyle], name: str) -> Markup:
    """The panel as SVG; policies that all have one point, of about the same bytes, stand under each other, by name."""
    if len(panel.lines) > 1 and _is_at_one_budget(panel):
        return draw_dots(panel, styles, name)
    with look():
        figure, axes = new_panel()
        _draw_references(axes, panel)
        shifts = dodged(panel)
        ends = shown_range(panel)
        for series, points in panel.lines.items():
            _draw_line(axes, points, styles[series], [shifts[it.label] for it in points], ends)
        _set_axes(axes, panel)
        _point_beyond(axes, panel, shifts)
        title = f"{panel.measure} against memory, {panel.title}"
        return to_svg(figure, name, title, panel.description)


def dodged(panel: QualityPanel) -> dict[str, float]:
    """By label, how far a point is drawn beside the memory it measured, in percent of the full cache."""
    order = {series: place for place, series in enumerate(panel.lines)}
    points = sorted(
        (round(it.held_percent, 3), order[series], it.label)
        for series, line in panel.lines.items()
        for it in line
    )
    crowds: list[list[tuple[float, int, str]]] = []
    for point in points:
        if crowds and point[0] - crowds[-1][-1][0] <= _DODGE_PERCENT:
            crowds[-1].append(point)
        else:
            crowds.append([point])
    shifts = {}
    for crowd in crowds:
        step = min(_DODGE_PERCENT, _MOST_DODGED_PERCENT / len(crowd))
        for place, (_, _, label) in enumerate(crowd):
            shifts[label] = (place - (len(crowd) - 1) / 2) * step
    return shifts


def _is_at_one_budget(panel: QualityPanel) -> bool:
    held = [point.held_percent for points in panel.lines.values() for point in points]
    return len(held) == len(panel.lines) and max(held) - min(held) <= _SAME_BYTES_PERCENT


def _draw_references(axes: Axes, panel: QualityPanel) -> None:
    for label, point in panel.references.items():
        if label == FULL and point.low is not None and point.high is not None:
            axes.axhspan(point.low, point.high, color=INK, alpha=0.08, linewidth=0)
        axes.axhline(point.mean, color=INK, linestyle=REFERENCE_DASHES[label], linewidth=1.1, alpha=0.75)
        if label in _NAMED_REFERENCES:
            _name_reference(axes, panel, label)


def _name_reference(axes: Axes, panel: QualityPanel, label: str) -> None:
    """Write a line's name beside it, where neither another line strikes it through nor another name overprints it."""
    low, high = shown_range(panel)
    means = {name: point.mean for name, point in panel.references.items()}
    if not low <= means[label] <= high:
        return  # its line lies outside
    named = [means[name] for name in _NAMED_REFERENCES if name in means]
    is_high = means[label] == max(named)
    # Lines that are close have their names on the outer sides; names between lines far apart stay inside the panel.
    is_close = max(named) - min(named) < _CLOSE_LINES * (high - low) and len(named) > 1
    is_below = is_high != is_close
    beside = [means[label], *([means[FULL_AA]] if label == FULL and FULL_AA in means else [])]
    axes.annotate(
        _NAMED_REFERENCES[label],
        (1, min(beside) if is_below else max(beside)),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -3 if is_below else 3),
        textcoords="offset points",
        ha="right",
        va="top" if is_below else "bottom",
        fontsize="small",
    )


def _draw_line(
    axes: Axes,
    points: Sequence[Point],
    style: SeriesStyle,
    shifts: Sequence[float],
    ends: tuple[float, float],
) -> None:
    x = [point.held_percent + shift for point, shift in zip(points, shifts, strict=True)]
    axes.plot(
        x,
        [_at_edge(point.mean, ends) for point in points],
        color=style.color,
        marker=style.marker,
        markersize=6.5,
        linewidth=1.6,
        clip_on=False,  # a marker at the edge is whole; nothing is drawn farther off
    )
    for at, point in zip(x, points, strict=True):
        if point.low is not None and point.high is not None:
            axes.vlines(at, point.low, point.high, color=style.color, linewidth=1.3, alpha=0.8)


def _at_edge(value: float, ends: tuple[float, float]) -> float:
    return min(max(value, ends[0]), ends[1])


def _point_beyond(axes: Axes, panel: QualityPanel, shifts: Mapping[str, float]) -> None:
    """An arrow at the edge for every point beyond the axis, with its number where none stands close by."""
    ends, width = shown_range(panel), axes.get_xlim()[1]
    last = -width
    for it in sorted(beyond(panel), key=lambda point: point.held_percent):
        x, is_over = it.held_percent + shifts[it.label], it.mean > ends[1]
        is_free = x - last >= _NUMBER_SHARE * width
        last = x if is_free else last
        axes.annotate(
            f"{'↑' if is_over else '↓'}{f' {it.mean:.3g}' if is_free else ''}",
            (x, _at_edge(it.mean, ends)),
            xytext=(5, -2 if is_over else 2),
            textcoords="offset points",
            va="top" if is_over else "bottom",
            fontsize="small",
        )


def _set_axes(axes: Axes, panel: QualityPanel) -> None:
    most = max(point.held_percent for line in panel.lines.values() for point in line)
    # Beyond the full cache lies a form whose parts are larger than what they stand for.
    axes.set_xlim(0, max(101.0, most * 1.02) if most > _WIDE_PERCENT else most * 1.2 + 1)
    axes.set_xlabel("bytes of K/V held, measured (% of the full cache)")
    axes.set_ylabel(panel.measure)
    axes.set_ylim(*shown_range(panel))
    axes.tick_params(length=0, color=FAINT)


def draw_dots(panel: QualityPanel, styles: Mapping[str, SeriesStyle], name: str) -> Markup:
    """The panel as SVG, best policy on top; every line of it has one point."""
    points = {series: line[0] for series, line in panel.lines.items()}
    is_lower_better = panel.measure == NLL
    ordered = sorted(points, key=lambda series: points[series].mean, reverse=is_lower_better)
    with look():
        figure, axes = new_panel()
        height = _FRAME_INCHES + _ROW_INCHES * len(ordered)
        figure.set_figheight(height)
        bottom = 0.6 * _FRAME_INCHES / height
        figure.subplots_adjust(left=_NAME_SHARE, right=0.96, bottom=bottom, top=1 - 0.1 / height)
        _draw_upright_references(axes, panel)
        for place, series in enumerate(ordered):
            _draw_point(axes, points[series], place, styles[series], shown_range(panel))
        axes.set_yticks(
            range(len(ordered)),
            [f"{it} ({points[it].held_percent:.1f} %)" for it in ordered],
            fontsize="small",
        )
        axes.set_ylim(-0.7, len(ordered) - 0.3)
        axes.grid(axis="y", visible=False)
        _set_x(axes, panel)
        return to_svg(figure, name, f"{panel.measure} by policy, {panel.title}", panel.description)


def _draw_upright_references(axes: Axes, panel: QualityPanel) -> None:
    for label, point in panel.references.items():
        if label == FULL and point.low is not None and point.high is not None:
            axes.axvspan(point.low, point.high, color=INK, alpha=0.08, linewidth=0)
        axes.axvline(point.mean, color=INK, linestyle=REFERENCE_DASHES[label], linewidth=1.1, alpha=0.75)


def _draw_point(axes: Axes, point: Point, place: int, style: SeriesStyle, ends: tuple[float, float]) -> None:
    mean = _at_edge(point.mean, ends)
    if mean != point.mean:
        is_over = point.mean > ends[1]
        axes.annotate(
            f"{point.mean:.3g} →" if is_over else f"← {point.mean:.3g}",
            (mean, place),
            xytext=(-6 if is_over else 6, 0),
            textcoords="offset points",
            ha="right" if is_over else "left",
            va="center",
            fontsize="small",
        )
    elif point.low is not None and point.high is not None:
        axes.hlines(place, point.low, point.high, color=style.color, linewidth=1.3, alpha=0.8)
    axes.plot([mean], [place], color=style.color, marker=style.marker, markersize=6.5)


def _set_x(axes: Axes, panel: QualityPanel) -> None:
    """Limits and label of the horizontal axis."""
    # By the means: the intervals of a handful of items can be so wide that all means would lie in one spot.
    axes.set_xlabel(panel.measure)
    axes.set_xlim(*shown_range(panel))
    axes.tick_params(length=0, color=FAINT)
