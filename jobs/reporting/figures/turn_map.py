"""Contexts that are asked many times: what each variant loses at the first question, the second and so on.

A table rather than a picture, as the needle's: its cells are numbers, tinted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jobs.reporting.figures.depth_map import DepthCell, cells_of
from jobs.results.grouping import Setting, setting_of, task_of
from jobs.results.schema import DONE_STATUSES, Row

_MOST_TURNS = 20


@dataclass(frozen=True, slots=True)
class TurnMap:
    """One task: lines are variants by name, cells their means at each turn; None where no item is."""

    task: str
    measure: str
    turns: tuple[int, ...]
    lines: tuple[tuple[str, tuple[DepthCell | None, ...]], ...]


def turn_maps(rows: Iterable[Row], shown_names: Mapping[tuple[Setting, str], str]) -> list[TurnMap]:
    """One map for each setting and task whose items say which turn they are, where there is more than one.

    `shown_names` are the tables' names of variants.
    """
    groups: dict[tuple[Setting, str], list[tuple[Row, int]]] = {}
    for row in rows:
        if row["status"] in DONE_STATUSES and (turn := _turn(row)):
            groups.setdefault((setting_of(row), task_of(row)), []).append((row, turn))
    maps = (_map(setting, task, placed, shown_names) for (setting, task), placed in groups.items())
    return [it for it in maps if it is not None]


def _turn(row: Row) -> int | None:
    """The row's turn, from 1; None without one."""
    turn = json.loads(row["item_metadata"] or "{}").get("turn")
    # Metadata is a benchmark's own, and of a user's file it may hold anything under this name.
    return turn if isinstance(turn, int) and not isinstance(turn, bool) and 1 <= turn <= _MOST_TURNS else None


def _map(
    setting: Setting,
    task: str,
    placed: list[tuple[Row, int]],
    shown_names: Mapping[tuple[Setting, str], str],
) -> TurnMap | None:
    column = "answer_nll" if any(row["answer_nll"] is not None for row, _ in placed) else "score"
    values: dict[str, dict[int, list[float]]] = {}
    for row, turn in placed:
        if row[column] is not None:
            values.setdefault(row["variant"], {}).setdefault(turn, []).append(row[column])
    turns = tuple(sorted({turn for places in values.values() for turn in places}))
    if len(turns) < 2:
        return None
    is_higher_worse = column == "answer_nll"
    cell = cells_of(values, is_higher_worse=is_higher_worse)
    lines = tuple(
        (shown_names.get((setting, label), label), tuple(cell(places.get(turn)) for turn in turns))
        for label, places in values.items()
    )
    return TurnMap(
        task,
        "mean answer NLL, nats per token" if is_higher_worse else "mean score, 0 to 1",
        turns,
        lines,
    )
