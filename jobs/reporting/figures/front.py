"""Bytes against quality in one figure: every policy a point, the Pareto front drawn, names where they do not overprint.

Written as SVG by hand, so that each point carries its variant's name for the page's script and its numbers for a pointer.
What a script or a style sheet would add is not needed to read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from jobs.analysis.ranking.pareto import pareto_front
from jobs.reporting.figures.axis import Axis, nice_ticks
from jobs.reporting.figures.labels import Box, Label, placed
from jobs.reporting.figures.quality import dodged
from jobs.reporting.figures.quality_panel import NLL, Point, QualityPanel, beyond, shown_range
from jobs.reporting.figures.style import SeriesStyle, marker_path, page_color
from jobs.reporting.notation import human_bytes
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT

_TEXT = 13
_MARKER = 11
_REFERENCES = {FULL: ("full cache", ""), FULL_AA: ("", "6 4"), NO_CONTEXT: ("no context", "2 4")}
_WIDE_SHARE = 0.4  # of the full cache: from here on the axis ends at it
_ROOM = 1.04, 1.2  # beyond the full cache, and beyond policies that hold far less
_PERCENT = 100
_ARROW = 20  # between the axis' end and the marker of a point beyond it
_SIDES = {NLL: "lower is better"}


class Frame(NamedTuple):
    """The figure's size in its own units, of which a text is 13 high."""

    width: int
    height: int
    most_ticks: int

    @property
    def inside(self) -> Box:
        """Where the points lie: beside it are the axes' words."""
        return Box(52, 34, self.width - 14, self.height - 62)


WIDE, NARROW = Frame(620, 470, 6), Frame(380, 420, 3)
"""For a screen, and for a telephone, on which the wide one's text could not be read."""


class _Scales(NamedTuple):
    x: Axis
    y: Axis
    full_bytes: float | None
    frame: Frame


def front_labels(panel: QualityPanel) -> frozenset[str]:
    """The labels of the policies on the Pareto front of bytes held and the panel's measure."""
    return frozenset(pareto_front(_losses(panel))) - {FULL}


def draw_front(
    panel: QualityPanel,
    styles: Mapping[str, SeriesStyle],
    told: Mapping[str, str],
    names: Mapping[str, str],
    frame: Frame = WIDE,
) -> Markup:
    """The figure as an SVG element, for a panel whose points have labels of variants.

    `told` are the words of each label for a pointer that rests on its point, `names` what readers call it.
    """
    scales = _scales(panel, frame)
    shifts = dodged(panel)
    shift = (scales.full_bytes or 0.0) / _PERCENT
    at = {
        it.label: (scales.x.at(it.held_bytes + shifts[it.label] * shift), _height(it, scales))
        for line in panel.lines.values()
        for it in line
    }
    parts = [
        *_grid(scales, panel.measure),
        *_references(panel, scales),
        _front_line(panel, at, scales),
        *(_series(line, at, styles[name], scales) for name, line in panel.lines.items()),
        *(
            _point(it, at[it.label], styles[name], told.get(it.label, it.label))
            for name, line in panel.lines.items()
            for it in line
        ),
        *(_arrow(at[it.label], it.mean > scales.y.high) for it in beyond(panel)),
        *_names(panel, at, scales, names),
    ]
    title = f"{panel.measure} against bytes held, {panel.title}"
    return Markup(
        f'<svg class="front-figure" viewBox="0 0 {frame.width} {frame.height}" role="img" font-family="sans-serif" '
        f'font-size="{_TEXT}"><title>{escape(title)}</title><desc>{escape(panel.description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _height(it: Point, scales: _Scales) -> float:
    """Where a point is drawn; with room for an arrow where it lies beyond the axis."""
    if scales.y.holds(it.mean):
        return scales.y.at(it.mean)
    return scales.y.at_edge(it.mean) + (_ARROW if it.mean > scales.y.high else -_ARROW)


def _arrow(at: tuple[float, float], is_up: bool) -> str:
    (x, y), sign = at, -1 if is_up else 1
    tip = y + sign * (_ARROW - 2)
    return (
        f'<path class="beyond" d="M{x:.1f},{y + sign * (_MARKER / 2 + 2):.1f}V{tip:.1f}m-3.5,{-sign * 5}l3.5,{sign * 5}'
        f'l3.5,{-sign * 5}" fill="none" stroke="var(--ink)" stroke-width="1.4"/>'
    )


def _losses(panel: QualityPanel) -> dict[str, tuple[float, float]]:
    """Label → (bytes, what is lost), of policies and the full cache."""
    sign = 1 if panel.measure == NLL else -1
    points = {it.label: (it.held_bytes, sign * it.mean) for line in panel.lines.values() for it in line}
    full = panel.references.get(FULL)
    return points if full is None else {**points, FULL: (full.held_bytes, sign * full.mean)}


def _scales(panel: QualityPanel, frame: Frame) -> _Scales:
    full = panel.references.get(FULL)
    held = [it.held_bytes for line in panel.lines.values() for it in line]
    most = max(held) * _ROOM[1]
    if full is not None and max(held) > _WIDE_SHARE * full.held_bytes:
        most = max(*held, full.held_bytes) * _ROOM[0]
    low, high = shown_range(panel)
    left, top, right, bottom = frame.inside
    return _Scales(
        Axis(0.0, most or 1.0, left, right),
        Axis(low, high, bottom, top),
        full.held_bytes if full else None,
        frame,
    )


def _grid(scales: _Scales, measure: str) -> Iterable[str]:
    left, top, right, bottom = scales.frame.inside
    for tick in nice_ticks(scales.y.low, scales.y.high):
        y = scales.y.at(tick.value)
        yield _line((left, y), (right, y), 'stroke="var(--line)" stroke-width="1"')
        yield _text(tick.text, left - 7, y + 4, "end")
    for tick in nice_ticks(0.0, scales.x.high, scales.frame.most_ticks, binary=True):
        x = scales.x.at(tick.value)
        yield _line((x, top), (x, bottom), 'stroke="var(--line)" stroke-width="1"')
        yield _text(human_bytes(tick.value), x, bottom + 19, "middle" if tick.value else "start")
        if scales.full_bytes and tick.value:
            share = tick.value / scales.full_bytes
            yield _text(f"{share:.0%}", x, bottom + 35, "middle", "var(--dim)")
    of_full = ", and % of the full cache's" if scales.full_bytes else ""
    yield _text(
        f"bytes of K/V held, measured{of_full}", (left + right) / 2, scales.frame.height - 8, "middle"
    )
    yield _text(f"{measure}: {_SIDES.get(measure, 'higher is better')}", 4, 17, "start")


def _references(panel: QualityPanel, scales: _Scales) -> Iterable[str]:
    left, _, right, _ = scales.frame.inside
    for label, point in panel.references.items():
        _, dashes = _REFERENCES[label]
        if label == FULL and point.low is not None and point.high is not None:
            top, bottom = scales.y.at_edge(point.high), scales.y.at_edge(point.low)
            yield (
                f'<rect x="{left}" y="{top:.1f}" width="{right - left}" height="{bottom - top:.1f}" '
                'fill="var(--ink)" opacity="0.08"/>'
            )
        if scales.y.holds(point.mean):
            y = scales.y.at(point.mean)
            look = f'stroke="var(--ink)" stroke-width="1.2" opacity="0.75" stroke-dasharray="{dashes}"'
            yield _line((left, y), (right, y), look)


def _front_line(panel: QualityPanel, at: Mapping[str, tuple[float, float]], scales: _Scales) -> str:
    """The best that is reached with as many bytes or fewer: a staircase from the first point of the front to the right."""
    path = ""
    for label in pareto_front(_losses(panel)):
        # Policies where they are drawn, or the line would miss those that were moved off each other.
        x, y = at.get(label) or _place_of_full(panel, scales)
        path += f"H{x:.1f}" if path else f"M{x:.1f},{_worst_edge(panel, scales.frame)}"
        path += f"V{y:.1f}"
    return (
        f'<path class="front-line" d="{path}H{scales.frame.inside.right}" fill="none" stroke="var(--front)" stroke-width="5" '
        'opacity="0.55"/>'
    )


def _place_of_full(panel: QualityPanel, scales: _Scales) -> tuple[float, float]:
    full = panel.references[FULL]
    return scales.x.at_edge(full.held_bytes), scales.y.at_edge(full.mean)


def _worst_edge(panel: QualityPanel, frame: Frame) -> float:
    return frame.inside.top if panel.measure == NLL else frame.inside.bottom


def _series(
    line: Sequence[Point], at: Mapping[str, tuple[float, float]], style: SeriesStyle, scales: _Scales
) -> str:
    color = page_color(style)
    whiskers = "".join(
        _line(
            (at[it.label][0], scales.y.at_edge(it.low)),
            (at[it.label][0], scales.y.at_edge(it.high)),
            f'stroke="{color}" stroke-width="1.4" opacity="0.55"',
        )
        for it in line
        if it.low is not None and it.high is not None
    )
    if len(line) < 2:
        return whiskers
    path = "L".join("{:.1f},{:.1f}".format(*at[it.label]) for it in line)
    return f'{whiskers}<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.5" opacity="0.8"/>'


def _point(it: Point, at: tuple[float, float], style: SeriesStyle, told: str) -> str:
    color, (x, y) = page_color(style), at
    return (
        f'<g class="point" data-variant="{escape(it.label)}" '
        f'transform="translate({x:.1f} {y:.1f})"><title>{escape(told)}</title>'
        f'<circle r="{_MARKER}" fill="none" pointer-events="all"/>'
        f'<path d="{marker_path(style, _MARKER)}" fill="{color}" stroke="var(--paper)" stroke-width="0.8"/></g>'
    )


def _names(
    panel: QualityPanel, at: Mapping[str, tuple[float, float]], scales: _Scales, names: Mapping[str, str]
) -> Iterable[str]:
    """The references' names, then the front's, each only where it covers no other name and no point."""
    half, inside = _MARKER / 2, scales.frame.inside
    far = beyond(panel)
    points = [Box(x - half, y - half, x + half, y + half) for x, y in at.values()]
    points += [Box(x - half, y - _ARROW, x + half, y + _ARROW) for x, y in (at[it.label] for it in far)]
    means = [scales.y.at(it.mean) for it in panel.references.values() if scales.y.holds(it.mean)]
    lines = [Box(inside.left, y - 1, inside.right, y + 1) for y in means]
    wanted = [
        _reference_label(panel, scales, label) for label in (FULL, NO_CONTEXT) if label in panel.references
    ]
    wanted += [Label.beside(_number(it, names), at[it.label], _MARKER, _TEXT) for it in far]
    wanted += [
        Label.beside(names.get(label, label), at[label], _MARKER, _TEXT)
        for label in pareto_front(_losses(panel))
        if label in at and label not in {it.label for it in far}
    ]
    found = list(placed(wanted, [*points, *lines], inside))
    # On a narrow screen there may be room for a number where there is none for its name.
    said = {text for text, _ in found}
    numbers = [
        Label.beside(f"{it.mean:.3g}", at[it.label], _MARKER, _TEXT)
        for it in far
        if _number(it, names) not in said
    ]
    found += placed(numbers, [*points, *lines, *(box for _, box in found)], inside)
    # Between lines that are close there may be no room: a name on a line can be read, one on another name cannot.
    left = [it for it in wanted if it.text not in {text for text, _ in found}]
    found += placed(left, [*points, *(box for _, box in found)], inside)
    for text, box in found:
        yield _text(text, box.left, box.bottom - 3, "start", halo=True)


def _number(it: Point, names: Mapping[str, str]) -> str:
    return f"{names.get(it.label, it.label)}: {it.mean:.3g}"


def _reference_label(panel: QualityPanel, scales: _Scales, label: str) -> Label:
    right = scales.frame.inside.right
    name, mean = _REFERENCES[label][0], panel.references[label].mean
    if not scales.y.holds(mean):
        edge = "above" if mean > scales.y.high else "below"
        return Label.on_line(f"{name}: {mean:.3g}, {edge} this axis", scales.y.at_edge(mean), right, _TEXT)
    return Label.on_line(name, scales.y.at(mean), right, _TEXT)


def _line(start: tuple[float, float], end: tuple[float, float], look: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {look}/>'


def _text(
    text: str, x: float, y: float, anchor: str, color: str = "var(--ink)", *, halo: bool = False
) -> str:
    around = ' stroke="var(--paper)" stroke-width="3" paint-order="stroke"' if halo else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"{around}>{escape(text)}</text>'
    )
