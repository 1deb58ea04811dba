"""Text that stands in Markdown as text: in a line, in a table's cell, or as it is between two fences."""

from __future__ import annotations

import re

# "&" first, or it would escape the escapes that the others become.
_SIGNS = {"&": "&amp;", "\\": "&#92;", "<": "&lt;", ">": "&gt;", "|": "&#124;"} | {
    # Brackets alone mean nothing, and intervals are full of them.
    sign: sign.replace(sign[-1], f"\\{sign[-1]}")
    for sign in ("_", "*", "`", "~", "](", "]:")
}
_FENCE = "```"
# What a line may not begin with, or it would be a heading, a list, a quotation or a rule.
_OPENING = re.compile(r"^(\s*)([#+=-]|\d+(?=[.)]))")


def escaped(text: str) -> str:
    """The text on one line, without signs that would be read as a column, emphasis, a link or HTML."""
    for sign, instead in _SIGNS.items():
        text = text.replace(sign, instead)
    return " ".join(text.splitlines()) if "\n" in text or "\r" in text else text


def escaped_line(text: str) -> str:
    """As `escaped`, for what begins a line."""
    return _OPENING.sub(
        lambda it: f"{it[1]}\\{it[2]}" if not it[2].isdigit() else f"{it[1]}{it[2]}\\", escaped(text.strip())
    )


def fenced(text: str) -> str:
    """The text as it is, between fences that are longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(len(_FENCE), longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
