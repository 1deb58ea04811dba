"""Quality of policies that all have one budget: a row each, by name, with the measured slots beside it.

On an axis of memory such points would lie on each other.
"""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup
from matplotlib.axes import Axes

from jobs.figures.quality_panel import HIGHEST, NLL, REFERENCE_DASHES, Point, QualityPanel
from jobs.figures.style import FAINT, INK, SeriesStyle, look, new_panel, to_svg
from kvmerger.variants import FULL

_ROW_INCHES, _FRAME_INCHES = 0.24, 0.75
_NAME_SHARE = 0.44  # of the panel's width, for "expected_attention (49.9 %)"


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
        _draw_references(axes, panel)
        for place, series in enumerate(ordered):
            _draw_point(axes, points[series], place, styles[series])
        axes.set_yticks(
            range(len(ordered)),
            [f"{it} ({points[it].kept_percent:.1f} %)" for it in ordered],
            fontsize="small",
        )
        axes.set_ylim(-0.7, len(ordered) - 0.3)
        axes.grid(axis="y", visible=False)
        _set_x(axes, panel)
        return to_svg(figure, name, f"{panel.measure} by policy, {panel.title}", panel.description)


def _draw_references(axes: Axes, panel: QualityPanel) -> None:
    for label, point in panel.references.items():
        if label == FULL and point.low is not None and point.high is not None:
            axes.axvspan(point.low, point.high, color=INK, alpha=0.08, linewidth=0)
        axes.axvline(point.mean, color=INK, linestyle=REFERENCE_DASHES[label], linewidth=1.1, alpha=0.75)


def _draw_point(axes: Axes, point: Point, place: int, style: SeriesStyle) -> None:
    if point.low is not None and point.high is not None:
        axes.hlines(place, point.low, point.high, color=style.color, linewidth=1.3, alpha=0.8)
    axes.plot([point.mean], [place], color=style.color, marker=style.marker, markersize=6.5)


def _set_x(axes: Axes, panel: QualityPanel) -> None:
    """Intervals of a handful of items can be far wider than all means: the means decide what is shown."""
    axes.set_xlabel(panel.measure)
    drawn = [*(line[0] for line in panel.lines.values()), *panel.references.values()]
    if panel.measure in HIGHEST:
        highest = HIGHEST[panel.measure]
        axes.set_xlim(min(0.0, *(it.mean for it in drawn)) - 0.03 * highest, highest * 1.05)
    else:
        axes.set_xlim(0, 1.6 * max(it.mean for it in drawn) or 1.0)
    axes.tick_params(length=0, color=FAINT)
