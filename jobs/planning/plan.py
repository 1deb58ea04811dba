"""Which rows a sweep owes, which of them exist, and in what units the others are computed.

Pure: settings, items and facts go in, a frozen plan comes out, the same one each time. Every (item x variant) is in
it exactly once: done, impossible (with its reason; it becomes a failed row without touching the model) or a cell of
exactly one unit. `full`, `no_context` and `full_aa` are variants of every plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from evaluators.item import BenchmarkItem
from evaluators.tokenizer import Tokenizer
from jobs.planning.cells import CellPlanner, CheckCell, PlannedCell, VariantFacts
from jobs.planning.prediction import ModelShape
from jobs.planning.units import Outlook, cut_units, outlook_of
from jobs.planning.variant_list import VariantList
from jobs.planning.work import WorkUnit
from jobs.settings.schema import Settings


class PlanError(ValueError):
    """A sweep that cannot be planned, with what to change."""


@dataclass(frozen=True, slots=True)
class VariantOutlook:
    """Counts of one variant's cells, and one impossible cell's reason to stand for all."""

    label: str
    num_cells: int
    num_done: int
    num_impossible: int
    num_degenerate: int
    impossible_reason: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All cells in the order of tasks, items and variants, and the units for those that are owed."""

    cells: tuple[PlannedCell, ...]
    units: tuple[WorkUnit, ...]
    outlooks: tuple[Outlook, ...]
    variants: tuple[VariantOutlook, ...]

    @property
    def num_cells(self) -> int:
        """Rows the sweep has when it is complete."""
        return len(self.cells)

    @property
    def num_done(self) -> int:
        """Rows that exist already."""
        return sum(planned.is_done for planned in self.cells)

    @property
    def num_items(self) -> int:
        """Benchmark items, each crossed with every variant."""
        return len({planned.item.item_id for planned in self.cells})

    @property
    def impossible(self) -> tuple[PlannedCell, ...]:
        """Cells that become failed rows without being run."""
        return tuple(it for it in self.cells if not it.is_done and it.impossible_reason is not None)

    @property
    def predicted_bytes(self) -> int:
        """Bytes of K/V of the largest unit: units run one after another on a device."""
        return max((outlook.kv_bytes for outlook in self.outlooks), default=0)

    @property
    def degenerate_labels(self) -> tuple[str, ...]:
        """Variants that are foreseen to keep everything on at least one item."""
        return tuple(variant.label for variant in self.variants if variant.num_degenerate)

    def check_integrity(self) -> None:
        """Raise RuntimeError unless each owed cell is in exactly one unit, no other is, and no key is there twice."""
        owed = sorted(planned.cell.identity for planned in self.cells if planned.is_owed)
        in_units = sorted(cell.identity for unit in self.units for cell in unit.cells)
        num_identities = len({planned.cell.identity for planned in self.cells})
        if owed != in_units or num_identities != len(self.cells):
            raise RuntimeError(
                f"the plan contradicts itself: {len(self.cells)} cells with {num_identities} identities, "
                f"{len(owed)} owed, {len(in_units)} in units"
            )


def build_plan(
    settings: Settings,
    items_by_task: Mapping[str, Sequence[BenchmarkItem]],
    tokenizer: Tokenizer,
    model: ModelShape,
    facts: Mapping[str, VariantFacts],
    done: Collection[str],
    check_cell: CheckCell,
) -> Plan:
    """Cross items with variants, drop what is done, and cut the rest into units.

    `facts` has an entry per wanted label (reference rows need none); `done` are identities that have a result.
    `check_cell` is asked once per variant and prompt length.

    Raises:
        PlanError: a task without items, an item twice, or a variant that can work on no item.
        VariantError: two variants that are the same computation.
    """
    variants = VariantList.of(settings.variants)
    items = _checked_items(items_by_task)
    planner = CellPlanner(settings, tokenizer, model, variants, facts, frozenset(done), check_cell)
    cells = tuple(planned for item in items for planned in planner.cells_of(item))
    summaries = tuple(_summary(label, cells) for label in variants.specs)
    _check_possible(summaries, variants)
    units = cut_units(settings, cells, variants, model.device)
    outcomes = frozenset(label for label, fact in facts.items() if fact.budget_is_outcome)
    acting = frozenset(label for label, fact in facts.items() if fact.acts_while_answering)
    outlooks = tuple(outlook_of(it, variants, outcomes, acting, model) for it in units)
    plan = Plan(cells, units, outlooks, summaries)
    plan.check_integrity()
    return plan


def _checked_items(items_by_task: Mapping[str, Sequence[BenchmarkItem]]) -> list[BenchmarkItem]:
    for task, items in items_by_task.items():
        if not items:
            raise PlanError(f"task {task!r} has no items; check its data and limit")
    items = [item for task_items in items_by_task.values() for item in task_items]
    repeated = [item_id for item_id, count in Counter(item.item_id for item in items).items() if count > 1]
    if repeated or not items:
        raise PlanError(
            f"{len(repeated)} items are there twice, such as {repeated[0]!r}; list each task once, or change its seed"
            if repeated
            else "there are no tasks"
        )
    return items


def _summary(label: str, cells: Sequence[PlannedCell]) -> VariantOutlook:
    own = [planned for planned in cells if planned.cell.label == label]
    reasons = [planned.impossible_reason for planned in own if planned.impossible_reason is not None]
    return VariantOutlook(
        label=label,
        num_cells=len(own),
        num_done=sum(planned.is_done for planned in own),
        num_impossible=len(reasons),
        num_degenerate=sum(planned.is_degenerate for planned in own),
        impossible_reason=reasons[0] if reasons else None,
    )


def _check_possible(summaries: Sequence[VariantOutlook], variants: VariantList) -> None:
    """A variant that fails on every item is a mistake in the settings, to be told before anything is loaded."""
    lost = [it for it in summaries if it.num_impossible == it.num_cells]
    if lost:
        if len(lost) == len(summaries) and len({it.impossible_reason for it in lost}) == 1:
            raise PlanError(f"no item can run at all: {lost[0].impossible_reason}")
        lines = [
            f"{it.label!r} (budget {variants.specs[it.label].budget}): {it.impossible_reason}" for it in lost
        ]
        raise PlanError("no item can run with " + "\n  and none with ".join(lines))
