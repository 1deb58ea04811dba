"""Cells that one prefill serves, cut into units that take about equally long.

Query-agnostic items with the same context share a unit; a unit that would take much longer than the usual one is
cut, since the longest unit decides when the last device is free.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evaluators.prompting import QueryMode
from jobs.cells import PlannedCell
from jobs.config import Settings
from jobs.identity import unit_id
from jobs.prediction import ModelShape, cost_tokens, most_slots, num_pieces, unit_bytes
from jobs.variant_list import VariantList
from jobs.work import PlannedItem, WorkUnit


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a unit is expected to hold: at most so many bytes of K/V at once, weights not counted."""

    unit_id: str
    context_tokens: int
    num_questions: int
    num_cells: int
    kv_bytes: int


def cut_units(settings: Settings, owed: Sequence[PlannedCell], variants: VariantList) -> tuple[WorkUnit, ...]:
    """Units that together hold exactly the cells in `owed`, in the order of their first cells."""
    groups = _grouped(owed, settings.query_mode)
    if not groups:
        return ()
    usual = statistics.median(cost_tokens(_items(group)) for group in groups)
    return tuple(
        _unit(piece, settings.execution, variants) for group in groups for piece in _pieces(group, usual)
    )


def outlook_of(
    unit: WorkUnit,
    variants: VariantList,
    outcomes: frozenset[str],
    acting: frozenset[str],
    model: ModelShape,
) -> Outlook:
    """Foresee one unit; `outcomes` are labels whose slots no budget binds, `acting` those that act while they answer."""
    num_tokens = len(unit.items[0].tokens.context_ids)
    slots = {spec.label: most_slots(spec, variants.specs, outcomes, num_tokens) for spec in unit.variants}
    own_slots = [count for label, count in slots.items() if label in acting]
    num_bytes = unit_bytes(unit.items, list(slots.values()), model, own_slots)
    return Outlook(unit.unit_id, num_tokens, len(unit.items), len(unit.cells), num_bytes)


_ItemCells = list[PlannedCell]
"""The owed cells of one item, at least one."""


def _grouped(owed: Iterable[PlannedCell], mode: QueryMode) -> list[list[_ItemCells]]:
    """Items that one prefill can serve, each with its cells, in order of first appearance."""
    cells_by_item: dict[str, _ItemCells] = {}
    for planned in owed:
        cells_by_item.setdefault(planned.item.item_id, []).append(planned)
    groups: dict[object, list[_ItemCells]] = {}
    for item_id, cells in cells_by_item.items():
        key = _planned(cells).tokens.context_ids if mode is QueryMode.AGNOSTIC else item_id
        groups.setdefault(key, []).append(cells)
    return list(groups.values())


def _pieces(group: list[_ItemCells], usual_cost: float) -> list[list[_ItemCells]]:
    """Cut a group into pieces whose numbers of questions differ by at most one."""
    prefill_cost = float(len(_planned(group[0]).tokens.context_ids))
    count = min(len(group), num_pieces(cost_tokens(_items(group)), prefill_cost, usual_cost))
    edges = [index * len(group) // count for index in range(count + 1)]
    return [group[begin:end] for begin, end in itertools.pairwise(edges)]


def _unit(piece: list[_ItemCells], execution: str, variants: VariantList) -> WorkUnit:
    cells = tuple(planned.cell for cells in piece for planned in cells)
    items = _items(piece)
    return WorkUnit(
        unit_id=unit_id(cell.identity for cell in cells),
        items=items,
        variants=variants.needed_for(cell.label for cell in cells),
        cells=cells,
        execution=execution,
        cost_tokens=cost_tokens(items),
    )


def _items(group: Sequence[_ItemCells]) -> tuple[PlannedItem, ...]:
    return tuple(_planned(cells) for cells in group)


def _planned(cells: _ItemCells) -> PlannedItem:
    planned = cells[0].planned
    assert planned is not None, "a cell without a prompt is impossible and never owed"
    return planned
