"""Needle depth by prompt length: where in the prompt a policy loses what it was to find.

A table rather than a picture: its cells are numbers, tinted.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jobs.results.grouping import Setting, setting_of
from jobs.results.schema import DONE_STATUSES, Row
from kvmerger.variants import NO_CONTEXT

Place = TypeVar("Place", bound=Hashable)
_NUM_BANDS = 5
_MAX_DEPTH_PERCENT = 100
_UNKNOWN_LENGTH = 0
_MAX_LENGTH_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class DepthCell:
    """Mean over the items of one depth and length; `tint` is 0 (best of all panels) to 1 (worst)."""

    mean: float
    num_items: int
    tint: float


@dataclass(frozen=True, slots=True)
class DepthPanel:
    """One variant: rows are depth bands, columns lengths; None where no item lies."""

    label: str
    cells: tuple[tuple[DepthCell | None, ...], ...]


@dataclass(frozen=True, slots=True)
class DepthMap:
    """All variants of one benchmark's task over its lengths, on one scale."""

    setting: Setting
    task: str
    measure: str
    lengths: tuple[str, ...]
    bands: tuple[str, ...]
    panels: tuple[DepthPanel, ...]


def depth_maps(rows: Iterable[Row], shown_names: Mapping[tuple[Setting, str], str]) -> list[DepthMap]:
    """One map per setting and task whose items say at what depth their needle lies; lengths of a task share one.

    `shown_names` are the tables' names of variants.
    """
    placed = [(row, place) for row in rows if row["status"] in DONE_STATUSES and (place := _place(row))]
    groups: dict[tuple[Setting, str], list[tuple[Row, tuple[int, int]]]] = {}
    for row, place in placed:
        groups.setdefault((setting_of(row), _name_without_length(row)), []).append((row, place))
    maps = [_map(setting, task, group, shown_names) for (setting, task), group in groups.items()]
    return [it for it in maps if it is not None]


def _place(row: Row) -> tuple[int, int] | None:
    """(depth band, length in tokens) of a row, or None without a depth."""
    metadata: Mapping[str, object] = json.loads(row["item_metadata"] or "{}")
    depth, length = metadata.get("depth_percent"), metadata.get("length_tokens", _UNKNOWN_LENGTH)
    # Metadata is a benchmark's own, and of a user's file it may hold anything under this name.
    if not isinstance(depth, int | float) or not 0 <= depth <= _MAX_DEPTH_PERCENT:
        return None
    # A depth of exactly 100 % belongs to the last band, not to one behind it.
    band = min(int(depth * _NUM_BANDS / _MAX_DEPTH_PERCENT), _NUM_BANDS - 1)
    # NaN is in no range.
    if not isinstance(length, int | float) or not 0 < length <= _MAX_LENGTH_TOKENS:
        length = _UNKNOWN_LENGTH
    return band, int(length)


def _name_without_length(row: Row) -> str:
    return f"{row['benchmark']}/{row['task'].rpartition('/')[2]}"


def _map(
    setting: Setting,
    task: str,
    placed: Sequence[tuple[Row, tuple[int, int]]],
    shown_names: Mapping[tuple[Setting, str], str],
) -> DepthMap | None:
    # One measure for the whole map: NLL and scores cannot share a scale of tints.
    column = "answer_nll" if any(row["answer_nll"] is not None for row, _ in placed) else "score"
    values: dict[str, dict[tuple[int, int], list[float]]] = {}
    for row, place in placed:
        if row[column] is not None:
            values.setdefault(row["variant"], {}).setdefault(place, []).append(row[column])
    if not values:
        return None
    lengths = sorted({length for places in values.values() for _, length in places})
    is_higher_worse = column == "answer_nll"
    cell = cells_of(values, is_higher_worse=is_higher_worse)
    panels = tuple(
        DepthPanel(
            shown_names.get((setting, label), label),
            tuple(
                tuple(cell(places.get((band, length))) for length in lengths) for band in range(_NUM_BANDS)
            ),
        )
        for label, places in values.items()
    )
    return DepthMap(
        setting,
        task,
        "mean answer NLL, nats per token" if is_higher_worse else "mean score, 0 to 1",
        tuple(f"{length:,}" if length != _UNKNOWN_LENGTH else "any length" for length in lengths),
        tuple(_band_name(band) for band in range(_NUM_BANDS)),
        panels,
    )


def cells_of(
    values: Mapping[str, Mapping[Place, list[float]]], *, is_higher_worse: bool
) -> Callable[[list[float] | None], DepthCell | None]:
    """What makes a cell of the values of one variant at one place, tinted on the scale of all of them."""
    means = [statistics.fmean(found) for places in values.values() for found in places.values()]
    least, most = min(means), max(means)
    if is_higher_worse and (blank := values.get(NO_CONTEXT)):
        # What is worse than no context has the deepest tint too, or one such variant would bleach all others.
        most = max(least, *(statistics.fmean(found) for found in blank.values()))

    def cell(found: list[float] | None) -> DepthCell | None:
        if not found:
            return None
        mean = statistics.fmean(found)
        share = min((mean - least) / (most - least), 1.0) if most > least else 0.0
        return DepthCell(mean, len(found), share if is_higher_worse else 1 - share)

    return cell


def _band_name(band: int) -> str:
    step = _MAX_DEPTH_PERCENT // _NUM_BANDS
    return f"{band * step} to {(band + 1) * step} %"
