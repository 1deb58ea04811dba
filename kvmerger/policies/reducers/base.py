"""Reducers, written after a `+`: the wrapped policy says which tokens stay, the reducer merges the others into those.

Shapes: H KV heads, N tokens.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from kvmerger.budget import Budget, BudgetError, BudgetSpec
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.parameters import require_choices, require_count
from kvmerger.policies.registry import name_of
from kvmerger.policies.selection import SelectingPolicy
from kvmerger.policies.wrapper import Wrapper
from kvmerger.prefill.attention_sources import ATTENTION_SOURCES, AttentionSource, mass_need
from kvmerger.prefill.evidence import (
    Evidence,
    Need,
    attention_mass,
)


@dataclass(frozen=True)
class Reducer(Wrapper):
    """Base of reducers. Subclasses give `merge`, and name in `needs` what it reads besides.

    Attributes:
        inner: the wrapped policy. It says which tokens stay, in heads of any length, and how layers share a budget.
    """

    inner: SelectingPolicy

    keeps_slots_unchanged = False

    def __post_init__(self) -> None:
        """Refuse a policy that does not say which tokens stay."""
        # By type: a reducer or a merging policy has no `select`, and so cannot tell which tokens it drops.
        if not isinstance(self.inner, SelectingPolicy):
            raise PolicyError(
                f"{name_of(self)} merges the tokens that a policy drops, and {name_of(self.inner)} does not say which "
                f"those are; put a policy that evicts before it, such as snapkv+{name_of(self)}"
            )

    @property
    def heads_agree(self) -> bool:  # type: ignore[override]
        """As the wrapped policy says."""
        return self.inner.heads_agree

    @property
    def budget_is_outcome(self) -> bool:
        """As the wrapped policy says: merging changes no number of slots."""
        return self.inner.budget_is_outcome

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """The wrapped policy's key, and whether the budget holds the whole prompt."""
        # `compress` returns a whole layer as it is: in a stack it would be merged with the others, and counted otherwise.
        return super().stack_key(evidence, budget), self._has_whole_budget(evidence, budget)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Select, then merge; a layer that keeps everything is returned as it is."""
        is_kept_HN = self.inner.selected(evidence, budget)
        # In this order: `all` waits for the device, and is seldom asked. A policy may keep less than its budget.
        is_whole = self._has_whole_budget(evidence, budget) and bool(is_kept_HN.all())
        return layer if is_whole else self.merge(layer, evidence, is_kept_HN)

    def _has_whole_budget(self, evidence: Evidence, budget: Budget) -> bool:
        return min(budget.num_slots_H) >= evidence.num_tokens

    @abc.abstractmethod
    def merge(self, layer: LayerCache, evidence: Evidence, is_kept_HN: Tensor) -> LayerCache:
        """One slot for every kept token (bool, (H, N)), at its position, with dropped ones merged into it or evicted."""


@dataclass(frozen=True)
class AttentionReducer(Reducer):
    """Base of reducers that weight tokens by the attention they receive.

    Attributes:
        attention_source: whose attention: all of ``prefill``, or the last ``window``.
        mass_window: tokens of that window.
    """

    attention_source: AttentionSource = "prefill"
    mass_window: int = 64

    def __post_init__(self) -> None:
        """Refuse a policy that does not say which tokens stay, and values outside their domain."""
        super().__post_init__()
        require_choices(name_of(self), vars(self), {"attention_source": ATTENTION_SOURCES})
        require_count(name_of(self), "mass_window", self.mass_window)

    def needs(self) -> frozenset[Need]:
        """What the wrapped policy reads, and attention."""
        return super().needs() | {self._mass_need}

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """Raise `BudgetError` for a prompt no longer than the window, and where the wrapped policy does."""
        if self.attention_source == "window" and shape.num_tokens <= self.mass_window:
            raise BudgetError(
                f"{name_of(self)}: the compressed part has {shape.num_tokens} tokens, no more than "
                f"mass_window={self.mass_window}; lower mass_window or leave out such short prompts"
            )
        super().check(shape, budget)

    @property
    def _mass_need(self) -> Need:
        return mass_need(self.attention_source, self.mass_window)

    def _mass(self, evidence: Evidence) -> Tensor:
        """Attention mass: fp32 (H, N), positive."""
        return attention_mass(evidence, self._mass_need)
