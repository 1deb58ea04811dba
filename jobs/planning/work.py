"""What the plan hands to the executors: units of work, and what both know of the model.

A unit is frozen and carries all that its rows depend on: run twice, in another process or on another machine, it
owes the same rows under the same identities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from evaluators.item import BenchmarkItem
from evaluators.prompting import TokenizedPrompt
from kvmerger.variants import VariantSpec


class ModelFacts(Protocol):
    """The part of `kvmerger.models.source.ModelInfo`, whose module loads torch, that plans and result rows read."""

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def attention(self) -> str: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def max_positions(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PlannedItem:
    """A benchmark item and its token ids, as every variant will see them."""

    item: BenchmarkItem
    tokens: TokenizedPrompt


@dataclass(frozen=True, slots=True)
class RowKey:
    """Names one row of a plan: an item under the variant `label`. `identity` is a sha256 hex digest (`identity.py`)."""

    identity: str
    item_id: str
    label: str


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """Rows that are computed together: a prefill for each context, and one batch for the rows of all.

    `contexts` has a tuple of indices of `items` for each context; every index is in one of them.
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
