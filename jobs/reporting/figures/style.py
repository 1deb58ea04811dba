"""One look for all figures: text stays text, colours are the page's own, and every series has a marker of its own.

A colour is drawn as a stand-in and turned into a CSS variable, so that one SVG serves light, dark and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

# Stand-ins for colours that a style sheet decides: matplotlib takes no CSS variables, so they are put in afterwards.
INK, FAINT, PAPER = "#0a0b01", "#0a0b02", "#0a0b03"
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--line)", PAPER: "var(--paper)"}
_SERIES_STAND_IN = "#0a0c{:02x}"
NUM_SERIES_COLORS = 7
"""How many `--series-N` the style sheet has: Okabe and Ito's colours, which the colour-blind can tell apart."""
# Their number, 8, shares no factor with that of the colours, 7, so 56 series differ.
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_COMMANDS: dict[int, str] = {
    int(Path.MOVETO): "M",
    int(Path.LINETO): "L",
    int(Path.CURVE3): "Q",
    int(Path.CURVE4): "C",
}
_PANEL_INCHES = (5.0, 3.3)
_SWATCH_SIZE, _SWATCH_MARKER = (30, 16), 7
_FONT_POINTS = 10
_RC: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a task may be called "$a$"
    "font.family": "sans-serif",
    "font.size": _FONT_POINTS,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True, slots=True)
class SeriesStyle:
    """How one policy looks in every figure of the page."""

    color: str
    marker: str


def series_styles(names: Iterable[str]) -> dict[str, SeriesStyle]:
    """A colour and a marker for each name, in their order; both differ from one name to the next."""
    return {
        name: SeriesStyle(_SERIES_STAND_IN.format(index % NUM_SERIES_COLORS), _MARKERS[index % len(_MARKERS)])
        for index, name in enumerate(dict.fromkeys(names))
    }


def new_panel() -> tuple[Figure, Axes]:
    """An empty small multiple; use inside `look()`."""
    # Not through pyplot: it would choose a backend by what the machine has, and keep every figure alive.
    figure = Figure(figsize=_PANEL_INCHES)
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.13, right=0.975, bottom=0.16, top=0.96)
    return figure, axes


def look() -> AbstractContextManager[None]:
    """The context in which figures are made."""
    return mpl.rc_context(_RC)


def to_svg(figure: Figure, name: str, title: str, description: str = "") -> Markup:
    """The figure as an SVG element for the inside of a page; `name` keeps its ids apart from other figures'."""
    buffer = io.StringIO()
    # A fixed salt and no date make the same rows the same bytes; matplotlib's ids are random otherwise.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # Inside a page a style element holds for the whole page; ours has what it says.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = _with_page_colors(_without_idle_ids(_shortened(svg)))
    head, _, body = svg.partition(">")
    head = re.sub(r' (width|height|version|xmlns\S*)="[^"]*"', "", head)
    described = f"<desc>{escape(description)}</desc>" if description else ""
    return Markup(f'{head} role="img"><title>{escape(title)}</title>{described}{body.strip()}')


def _shortened(svg: str) -> str:
    """The same picture in half the bytes: a tenth of a point is all a reader sees, and paths need no lines of their own."""

    def rounded(found: re.Match[str]) -> str:
        return re.sub(r"-?\d+\.\d{2,}", lambda it: f"{float(it[0]):.1f}".removesuffix(".0"), found[0])

    svg = re.sub(r' (?:d|x|y)="[^"]*"', rounded, svg)
    # Between elements alone: in a text, blanks are part of a name.
    svg = re.sub(r">\s*\n\s*<", "><", svg)
    return re.sub(r' d="[^"]*"', lambda found: re.sub(r" ?\n ?", "", found[0]), svg)


def marker_path(style: SeriesStyle, size: float) -> str:
    """The series' marker about (0, 0), as the `d` of an SVG path of about `size` units across."""
    marker = MarkerStyle(style.marker)
    path = (marker.get_transform() + Affine2D().scale(size)).transform_path(marker.get_path())
    # SVG's y runs down, matplotlib's up.
    return (
        "".join(
            _COMMANDS[int(code)] + " ".join(f"{x:.1f},{-y:.1f}" for x, y in points.reshape(-1, 2))
            for points, code in path.iter_segments(simplify=False)
            if int(code) != Path.CLOSEPOLY
        )
        + "Z"
    )


def page_color(style: SeriesStyle) -> str:
    """The series' colour as the style sheet knows it."""
    return _with_page_colors(f"fill: {style.color}").removeprefix("fill: ")


def swatch(style: SeriesStyle) -> Markup:
    """The series' line and marker alone, for a legend in HTML; silent, since its name stands beside it.

    It has no id, so a legend may stand on the page more than once.
    """
    (width, height), color = _SWATCH_SIZE, page_color(style)
    return Markup(
        f'<svg class="swatch" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<path d="M0 {height / 2:g}H{width}" stroke="{color}" stroke-width="1.6"/>'
        f'<path transform="translate({width / 2:g} {height / 2:g})" d="{marker_path(style, _SWATCH_MARKER)}" fill="{color}"/>'
        "</svg>"
    )


def legend(styles: Mapping[str, SeriesStyle]) -> list[tuple[str, Markup]]:
    """Name and swatch of every series."""
    return [(name, swatch(style)) for name, style in styles.items()]


def _without_idle_ids(svg: str) -> str:
    """Ids that nothing refers to would be there again in the page's next figure."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)


def _with_page_colors(svg: str) -> str:
    stand_ins = _VARIABLES | {
        _SERIES_STAND_IN.format(index): f"var(--series-{index})" for index in range(NUM_SERIES_COLORS)
    }
    return re.sub(
        r"((?:fill|stroke): )(#0a0[bc][0-9a-f]{2})",
        lambda found: found[1] + stand_ins[found[2]],
        svg,
    )
