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
class RowKey:
    """Names one row of a plan, which is owed exactly once: an item under a variant.

    `identity` is the key of the row, a sha256 hex digest; `label` names the variant.
    """

    identity: str
    item_id: str
    label: str


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Rows that are computed together: a prefill for each context, and one batch for the rows of all.

    `contexts` are indices of `items`, each in one of them: those of a context share its ids, and its prefill.
    `variants` are those the rows name plus those a `like` budget refers to. `unit_id` is a digest of the rows'
    identities, so the same rows always land in the same result file. `cost_tokens` orders units, longest first.
    """

    unit_id: str
    items: tuple[PlannedItem, ...]
    contexts: tuple[tuple[int, ...], ...]
    variants: tuple[VariantSpec, ...]
    row_keys: tuple[RowKey, ...]
    execution: str
    cost_tokens: float
