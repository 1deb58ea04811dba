"""Cells of a CSV as spreadsheets are to read them: text is text, whatever a model or a name begins with.

For tables that people open. A file whose reader wants answers to the letter, such as a leaderboard's, is written without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Excel, LibreOffice and Google take what begins so for a formula, the wide forms of East Asian keyboards too.
_FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_TEXT_SIGN = "'"
"""What a spreadsheet takes for "this is text", and other readers for a letter."""


def cell(value: Any) -> Any:
    """The value, and where it is a text that would be a formula, with an apostrophe before it; numbers stay numbers."""
    # An apostrophe of its own is doubled only where it would be taken for ours: each text comes back by `text_of_cell`.
    is_formula = isinstance(value, str) and value.lstrip(f" {_TEXT_SIGN}").startswith(_FORMULA_SIGNS)
    return f"{_TEXT_SIGN}{value}" if is_formula else value


def cells(values: Iterable[Any]) -> list[Any]:
    """`cell` of each."""
    return [cell(value) for value in values]


def text_of_cell(shown: str) -> str:
    """The text that `cell` was given."""
    is_ours = shown.startswith(_TEXT_SIGN) and shown.lstrip(f" {_TEXT_SIGN}").startswith(_FORMULA_SIGNS)
    return shown.removeprefix(_TEXT_SIGN) if is_ours else shown
