"""Rows that are computed together: those that one prefill serves, cut or joined into units.

Query-agnostic items with the same context share a unit; a unit that would take much longer than the usual one is
cut, since the longest unit decides when the last device is free. Short contexts that owe the same variants share a
unit too, so that their rows decode in one batch and the weights are read once for all of them. Units are those of the
whole plan, without the rows that are done.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from evaluators.prompting import QueryMode
from jobs.planning.cost import context_bytes, cost_tokens, num_pieces, prompt_cost_tokens
from jobs.planning.identity import unit_id
from jobs.planning.rows import PlannedRow
from jobs.planning.sizes import ForeseenSize, SizeForecast
from jobs.planning.variant_list import VariantList
from jobs.planning.work import PlannedItem, WorkUnit
from jobs.settings.schema import Settings
from kvmerger.limits import Limits, bucket_for

MOST_CONTEXT_TOKENS = 4096
"""Longer contexts share no unit unless the settings ask for it: a decode step reads more K/V than weights there."""
FEWEST_UNITS = 32
"""Into fewer units no sweep is joined, so that a short one keeps many devices busy."""
_ItemRows = list[PlannedRow]
"""Rows of one item, at least one."""


@dataclass(frozen=True, slots=True)
class UnitSize:
    """What a unit is expected to hold.

    `kv_bytes` are the most bytes of K/V at once, weights not counted; `context_tokens` those of its longest context.
    """

    unit_id: str
    num_contexts: int
    context_tokens: int
    num_questions: int
    num_rows: int
    kv_bytes: int


def cut_units(
    settings: Settings,
    rows: Sequence[PlannedRow],
    variants: VariantList,
    device: str,
    repeating: Collection[str] = (),
) -> tuple[WorkUnit, ...]:
    """Units that together hold exactly those of `rows` that are owed, in the order of their first rows.

    `repeating` are the labels that have the context repeated.
    """
    # Of all rows, done or not: a sweep that goes on after an interruption then has the units it would have had, and a
    # prompt decodes in the same batch, on which the last bits of its numbers depend.
    groups = _grouped((it for it in rows if it.planned is not None), settings.query_mode)
    if not groups:
        return ()
    usual = statistics.median(_cost(group, repeating) for group in groups.values())
    batch_of = _batches(settings, groups, len(variants.specs), device)
    joined: dict[Hashable, list[list[_ItemRows]]] = {}
    for context, group in groups.items():
        pieces = _pieces(group, usual, repeating)
        for number, piece in enumerate(map(_owed, pieces)):
            labels = frozenset(planned.key.label for its_rows in piece for planned in its_rows)
            # A unit runs the same variants on all its contexts; and what was cut since it is long is not joined again.
            key = (batch_of[context], labels) if len(pieces) == 1 else (context, number)
            if piece:
                joined.setdefault(key, []).append(piece)
    return tuple(_unit(pieces, settings.execution, variants, repeating) for pieces in joined.values())


def size_of(unit: WorkUnit, sizes: SizeForecast) -> UnitSize:
    """Foresee one unit."""
    num_bytes = most_tokens = 0
    for indices in unit.contexts:
        items = [unit.items[index] for index in indices]
        num_tokens = len(items[0].tokens.context_ids)
        # Of what cannot be foreseen everything may be kept.
        everything = ForeseenSize(num_tokens, sizes.full_bytes(num_tokens))
        # Of a prompt without context every variant keeps everything, in the model's dtype.
        is_whole = items[0].tokens.is_context_free
        held = {
            spec.label: everything if is_whole else sizes.of(spec.label, num_tokens) or everything
            for spec in unit.variants
        }
        own = [
            size
            for label, size in held.items()
            if label in sizes.facts and sizes.facts[label].acts_while_answering
        ]
        num_bytes += context_bytes(items, list(held.values()), sizes.model, own)
        most_tokens = max(most_tokens, num_tokens)
    return UnitSize(
        unit.unit_id, len(unit.contexts), most_tokens, len(unit.items), len(unit.row_keys), num_bytes
    )


def items_at_once(settings: Settings, num_variants: int, num_items: int, device: str) -> int:
    """The most items that contexts joined in one unit may have together; `num_variants` includes the references.

    If the settings leave it open: on CUDA as many as the engine decodes in one batch, elsewhere one.
    """
    if settings.items_at_once != "auto":
        return settings.items_at_once
    # Two cores gain less (the shipped sweep takes 106 s instead of 130 with four at once) than an interruption then
    # costs: all items under way.
    if settings.execution == "isolated" or not device.startswith("cuda"):
        return 1
    num_rows = num_variants - 1  # the A/A row has a batch of its own
    return max(1, min(Limits().max_rows // bucket_for(num_rows), num_items // FEWEST_UNITS))


def batches_of_contexts(
    sizes: Mapping[Hashable, tuple[int, int]], most_items: int, most_tokens: int | None
) -> dict[Hashable, int]:
    """The number of the batch that each context decodes in. `sizes`: (tokens, items) of every context, in order.

    A context of more than `most_tokens` has a batch of its own. No batch has more than `most_items`, unless one context has.
    """
    batch_of: dict[Hashable, int] = {}
    num_batches = num_items = 0
    current: int | None = None
    for context, (num_tokens, items) in sizes.items():
        # It closes no batch: the short contexts before and after it go on filling the same one.
        if most_tokens is not None and num_tokens > most_tokens:
            batch_of[context] = num_batches
            num_batches += 1
            continue
        if current is None or num_items + items > most_items:
            current, num_items = num_batches, 0
            num_batches += 1
        batch_of[context] = current
        num_items += items
    return batch_of


def _grouped(rows: Iterable[PlannedRow], mode: QueryMode) -> dict[Hashable, list[_ItemRows]]:
    """Items that one prefill can serve, each with its rows, in order of first appearance."""
    rows_by_item: dict[str, _ItemRows] = {}
    for planned in rows:
        rows_by_item.setdefault(planned.item.item_id, []).append(planned)
    groups: dict[Hashable, list[_ItemRows]] = {}
    for item_id, its_rows in rows_by_item.items():
        tokens = _planned(its_rows).tokens
        # The same ids as a context would be compressed.
        key = (tokens.context_ids, tokens.is_context_free) if mode is QueryMode.AGNOSTIC else item_id
        groups.setdefault(key, []).append(its_rows)
    return groups


def _owed(piece: Iterable[_ItemRows]) -> list[_ItemRows]:
    """The owed rows of a piece's items, without items that owe none."""
    owed = ([planned for planned in rows if planned.is_owed] for rows in piece)
    return [rows for rows in owed if rows]


def _batches(
    settings: Settings, groups: Mapping[Hashable, list[_ItemRows]], num_variants: int, device: str
) -> dict[Hashable, int]:
    """The number of each context's batch."""
    sizes = {
        context: (len(_planned(group[0]).tokens.context_ids), len(group)) for context, group in groups.items()
    }
    most_items = items_at_once(settings, num_variants, sum(map(len, groups.values())), device)
    return batches_of_contexts(
        sizes, most_items, MOST_CONTEXT_TOKENS if settings.items_at_once == "auto" else None
    )


def _is_repeated(group: Iterable[_ItemRows], repeating: Collection[str]) -> bool:
    """Whether one of the rows that can run has the context repeated."""
    return any(
        planned.key.label in repeating and planned.impossible_reason is None
        for rows in group
        for planned in rows
    )


def _cost(group: Sequence[_ItemRows], repeating: Collection[str]) -> float:
    return cost_tokens(_items(group), is_repeated=_is_repeated(group, repeating))


def _pieces(group: list[_ItemRows], usual_cost: float, repeating: Collection[str]) -> list[list[_ItemRows]]:
    """Cut a group into pieces whose numbers of questions differ by at most one."""
    num_tokens = len(_planned(group[0]).tokens.context_ids)
    prompt_cost = prompt_cost_tokens(num_tokens, is_repeated=_is_repeated(group, repeating))
    count = min(len(group), num_pieces(_cost(group, repeating), prompt_cost, usual_cost))
    edges = [index * len(group) // count for index in range(count + 1)]
    return [group[begin:end] for begin, end in itertools.pairwise(edges)]


def _unit(
    pieces: Sequence[list[_ItemRows]], execution: str, variants: VariantList, repeating: Collection[str]
) -> WorkUnit:
    """A unit of a piece per context."""
    keys = tuple(planned.key for piece in pieces for rows in piece for planned in rows)
    needed = variants.needed_for(key.label for key in keys)
    is_repeated = any(spec.label in repeating for spec in needed)
    ends = list(itertools.accumulate(map(len, pieces)))
    return WorkUnit(
        unit_id=unit_id(key.identity for key in keys),
        items=tuple(item for piece in pieces for item in _items(piece)),
        contexts=tuple(tuple(range(begin, end)) for begin, end in itertools.pairwise([0, *ends])),
        variants=needed,
        row_keys=keys,
        execution=execution,
        cost_tokens=sum(cost_tokens(_items(piece), is_repeated=is_repeated) for piece in pieces),
    )


def _items(group: Sequence[_ItemRows]) -> tuple[PlannedItem, ...]:
    return tuple(_planned(rows) for rows in group)


def _planned(rows: _ItemRows) -> PlannedItem:
    planned = rows[0].planned
    assert planned is not None, "a row without a prompt is impossible and never owed"
    return planned
