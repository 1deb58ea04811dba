"""Which rows a sweep owes, which of them exist, and in what units the others are computed.

Pure: settings, items and facts go in, a frozen plan comes out, the same one each time. Every (item x variant) is in
it exactly once: as done, as impossible (a failed row with its reason, for which no model is needed), or as a row of
exactly one unit. `full`, `no_context` and `full_aa` are variants of every plan.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from evaluators.item import BenchmarkItem
from evaluators.tokenizer import Tokenizer
from jobs.planning.rows import CheckAnswering, CheckVariant, PlannedRow, RowPlanner, never_refused
from jobs.planning.sizes import ForeseenSize, SizeForecast, VariantFacts
from jobs.planning.units import UnitSize, cut_units, size_of
from jobs.planning.variant_list import VariantList
from jobs.planning.work import ModelFacts, PlannedItem, WorkUnit
from jobs.settings.schema import Settings


class PlanError(ValueError):
    """A sweep that cannot be planned, with what to change."""


@dataclass(frozen=True, slots=True)
class VariantCounts:
    """Counts of one variant's rows, the first impossible row's reason as an example, and its size at the typical prompt.

    `size` is None where the budget cannot be met there.
    """

    label: str
    num_rows: int
    num_done: int
    num_impossible: int
    num_degenerate: int
    impossible_reason: str | None
    size: ForeseenSize | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All rows in the order of tasks, items and variants, and the units for those that are owed.

    `typical_tokens` is the median of what is compressed of a prompt, of items with a context (0: none has one), and
    `typical_bytes` the full cache's keys and values of so many.
    """

    rows: tuple[PlannedRow, ...]
    units: tuple[WorkUnit, ...]
    unit_sizes: tuple[UnitSize, ...]
    variants: tuple[VariantCounts, ...]
    typical_tokens: int
    typical_bytes: int

    @property
    def num_rows(self) -> int:
        """Rows the sweep has when it is complete."""
        return len(self.rows)

    @property
    def num_done(self) -> int:
        """Rows that exist already."""
        return sum(planned.is_done for planned in self.rows)

    @property
    def num_items(self) -> int:
        """Benchmark items, each crossed with every variant."""
        return len({planned.item.item_id for planned in self.rows})

    @property
    def impossible(self) -> tuple[PlannedRow, ...]:
        """Rows that become failed rows without being run."""
        return tuple(it for it in self.rows if not it.is_done and it.impossible_reason is not None)

    @property
    def contexts(self) -> tuple[PlannedItem, ...]:
        """The first item of every distinct context that can be prefilled, in the order of the rows."""
        found: dict[tuple[int, ...], PlannedItem] = {}
        for row in self.rows:
            if row.planned is None or row.impossible_reason is not None:
                continue
            if not row.planned.tokens.is_context_free:
                found.setdefault(tuple(row.planned.tokens.context_ids), row.planned)
        return tuple(found.values())

    @property
    def predicted_bytes(self) -> int:
        """Bytes of K/V of the largest unit."""
        # Not the sum: units run one after another on a device.
        return max((size.kv_bytes for size in self.unit_sizes), default=0)

    @property
    def degenerate_labels(self) -> tuple[str, ...]:
        """Variants that are foreseen to keep everything on at least one item."""
        return tuple(variant.label for variant in self.variants if variant.num_degenerate)

    def check_integrity(self) -> None:
        """Raise RuntimeError unless each owed row is in exactly one unit, no other is, and no key is there twice."""
        owed = sorted(planned.key.identity for planned in self.rows if planned.is_owed)
        in_units = sorted(key.identity for unit in self.units for key in unit.row_keys)
        num_identities = len({planned.key.identity for planned in self.rows})
        if owed != in_units or num_identities != len(self.rows):
            raise RuntimeError(
                f"the plan contradicts itself: {len(self.rows)} rows with {num_identities} identities, "
                f"{len(owed)} owed, {len(in_units)} in units"
            )


def build_plan(
    settings: Settings,
    items_by_task: Mapping[str, Sequence[BenchmarkItem]],
    tokenizer: Tokenizer,
    model: ModelFacts,
    facts: Mapping[str, VariantFacts],
    done: Collection[str],
    check_variant: CheckVariant,
    check_answering: CheckAnswering = never_refused,
) -> Plan:
    """Cross items with variants, drop what is done, and cut the rest into units.

    `facts` has an entry per wanted label (reference rows need none); `done` are identities that have a result.
    `check_variant` is asked once per variant and prompt length, `check_answering` for each item without context.

    Raises:
        PlanError: a task without items, an item twice, or a variant that can work on no item.
        GeneratedPromptError: a generated prompt is too long for the model.
        VariantError: two variants that are the same computation.
    """
    variants = VariantList.of(settings.variants)
    items = _checked_items(items_by_task)
    sizes = SizeForecast(variants.specs, facts, model)
    planner = RowPlanner(
        settings, tokenizer, model, variants, facts, frozenset(done), check_variant, sizes, check_answering
    )
    rows = tuple(planned for item in items for planned in planner.rows_of(item))
    typical_tokens = _typical_tokens(rows)
    summaries = tuple(_summary(label, rows, sizes.of(label, typical_tokens)) for label in variants.specs)
    _check_possible(summaries, variants)
    repeating = {label for label, known in facts.items() if known.repeats_context}
    units = cut_units(settings, rows, variants, model.device, repeating)
    unit_sizes = tuple(size_of(it, sizes) for it in units)
    plan = Plan(rows, units, unit_sizes, summaries, typical_tokens, sizes.full_bytes(typical_tokens))
    # Here, in seconds: a row in no unit would be missed only after hours, one in two units would be paid for twice.
    plan.check_integrity()
    return plan


def _checked_items(items_by_task: Mapping[str, Sequence[BenchmarkItem]]) -> list[BenchmarkItem]:
    for task, items in items_by_task.items():
        if not items:
            raise PlanError(f"task {task!r} has no items; check its data and limit")
    items = [item for task_items in items_by_task.values() for item in task_items]
    repeated = [item_id for item_id, count in Counter(item.item_id for item in items).items() if count > 1]
    if repeated or not items:
        # A row's identity has its item's id in it: twice the item would be twice the row.
        raise PlanError(
            f"{len(repeated)} items are there twice, such as {repeated[0]!r}; list each task once, or change its seed"
            if repeated
            else "there are no tasks"
        )
    return items


def _typical_tokens(rows: Sequence[PlannedRow]) -> int:
    """The median of the context tokens of all items that have a prompt and a context in it; 0 where none has."""
    by_item = {
        it.item.item_id: len(it.planned.tokens.context_ids)
        for it in rows
        if it.planned is not None and not it.planned.tokens.is_context_free
    }
    return statistics.median_low(by_item.values()) if by_item else 0


def _summary(label: str, rows: Sequence[PlannedRow], size: ForeseenSize | None) -> VariantCounts:
    own = [planned for planned in rows if planned.key.label == label]
    reasons = [planned.impossible_reason for planned in own if planned.impossible_reason is not None]
    return VariantCounts(
        label=label,
        num_rows=len(own),
        num_done=sum(planned.is_done for planned in own),
        num_impossible=len(reasons),
        num_degenerate=sum(planned.is_degenerate for planned in own),
        impossible_reason=reasons[0] if reasons else None,
        size=size,
    )


def _check_possible(summaries: Sequence[VariantCounts], variants: VariantList) -> None:
    """Raise PlanError if a variant can run on no item: a mistake in the settings."""
    lost = [it for it in summaries if it.num_impossible == it.num_rows]
    if lost:
        # All variants for one reason: it is the items' (a prompt too long), and a line for each variant would hide that.
        if len(lost) == len(summaries) and len({it.impossible_reason for it in lost}) == 1:
            raise PlanError(f"no item can run at all: {lost[0].impossible_reason}")
        lines = [
            f"{it.label!r} (budget {variants.specs[it.label].budget}): {it.impossible_reason}" for it in lost
        ]
        raise PlanError("no item can run with " + "\n  and none with ".join(lines))
