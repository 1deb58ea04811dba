"""The unit of work that the plan makes and the executors run.

Everything here is frozen: a unit carries all that its rows depend on, so running it twice, in another process
or on another machine owes the same rows under the same identities.
"""

from __future__ import annotations

from dataclasses import dataclass

from evaluators.item import BenchmarkItem
from evaluators.prompting import TokenizedPrompt
from kvmerger.variants import VariantSpec


@dataclass(frozen=True, slots=True)
class PlannedItem:
    """A benchmark item and its token ids, as every variant will see them."""

    item: BenchmarkItem
    tokens: TokenizedPrompt


@dataclass(frozen=True, slots=True)
class Cell:
    """One planned (item x variant): exactly one result row is owed for it.

    `identity` is the key of the row, a sha256 hex digest; `label` names the variant.
    """

    identity: str
    item_id: str
    label: str


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Cells that are computed together: a prefill for each context, and one batch for the rows of all.

    Items that share their context ids share its prefill; query-agnostic mode can hold several questions on one.
    `variants` are those the cells name plus those a `like` budget refers to. `unit_id` is a digest of the cells'
    identities, so the same cells always land in the same result file. `cost_tokens` orders units, longest first.
    """

    unit_id: str
    items: tuple[PlannedItem, ...]
    variants: tuple[VariantSpec, ...]
    cells: tuple[Cell, ...]
    execution: str
    cost_tokens: float

    @property
    def contexts(self) -> tuple[tuple[int, ...], ...]:
        """The items by context, as indices of `items`: one prefill each, in the order of their first items."""
        found: dict[tuple[int, ...], list[int]] = {}
        for index, planned in enumerate(self.items):
            found.setdefault(planned.tokens.context_ids, []).append(index)
        return tuple(map(tuple, found.values()))
