"""A figure of the page as an SVG file of its own: with its title, its legend and colours that need no style sheet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

_MARGIN, _TITLE_HEIGHT, _ENTRY_HEIGHT = 12, 22, 18
_ENTRIES_A_LINE, _SWATCH_WIDTH = 3, 34
_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_FONT = "font-family:sans-serif;font-size:10px"


def page_colors(css: str) -> dict[str, str]:
    """The style sheet's variables with the values they have on a light screen: name → colour."""
    # The first block is the light one; the dark one after it defines the same names.
    light = css[: css.index("}")]
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-fA-F]{3,8})", light))


def standalone(
    panel: Markup, title: str, legend: Sequence[tuple[str, Markup]], colors: Mapping[str, str]
) -> str:
    """The panel on white, under its title and over its legend.

    Raises:
        KeyError: the figure uses a colour that the style sheet does not have.
    """
    width, height = (float(it) for it in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', panel)[0])
    num_lines = -(-len(legend) // _ENTRIES_A_LINE)
    full_height = _TITLE_HEIGHT + height + num_lines * _ENTRY_HEIGHT + _MARGIN
    entries = "".join(
        _entry(name, swatch, index, width, _TITLE_HEIGHT + height)
        for index, (name, swatch) in enumerate(legend)
    )
    svg = (
        f'<svg {_NAMESPACES} viewBox="0 0 {width:g} {full_height:g}" width="{width:g}" height="{full_height:g}">'
        f'<rect width="100%" height="100%" fill="{colors["paper"]}"/>'
        f'<text x="{_MARGIN}" y="15" style="{_FONT};font-weight:bold" fill="{colors["ink"]}">{escape(title)}</text>'
        f"{_placed(panel, 0, _TITLE_HEIGHT, width, height)}{entries}</svg>\n"
    )
    # Outside the page there is no style sheet, and most viewers paint an unknown variable black.
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colors[found[1]], svg)


def _entry(name: str, swatch: Markup, index: int, width: float, top: float) -> str:
    line, column = divmod(index, _ENTRIES_A_LINE)
    x = _MARGIN + column * (width - _MARGIN) / _ENTRIES_A_LINE
    y = top + line * _ENTRY_HEIGHT + 4
    return (
        f"{_placed(swatch, x, y, _SWATCH_WIDTH - 6, _ENTRY_HEIGHT - 4)}"
        f'<text x="{x + _SWATCH_WIDTH:g}" y="{y + 11:g}" style="{_FONT}" fill="var(--ink)">{escape(name)}</text>'
    )


def _placed(svg: Markup, x: float, y: float, width: float, height: float) -> str:
    return str(svg).replace("<svg ", f'<svg x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" ', 1)
