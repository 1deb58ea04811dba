"""Bases of what follows a `+` in a name: policies with an `inner` one, which answers for all that they leave alone.

Shapes: L layers, H KV heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from kvmerger.budget import Budget, BudgetSpec
from kvmerger.policies.base import CacheShape, Policy
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, Need


@dataclass(frozen=True)
class Wrapper(Policy):
    """Base of wrappers. Subclasses say what they keep, and override what they change.

    Attributes:
        inner: the wrapped policy.
    """

    inner: Policy

    @property
    def parts(self) -> tuple[Policy, ...]:
        """The wrapped policy's parts, then this wrapper."""
        return (*self.inner.parts, self)

    def needs(self) -> frozenset[Need]:
        """What the wrapped policy reads."""
        return self.inner.needs()

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """Raise `BudgetError` where the wrapped policy does."""
        self.inner.check(shape, budget)

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """As the wrapped policy allocates slots to layers."""
        return self.inner.allocate(budget_L, evidence_L)

    # A property in place of a class variable, here and below: the answer is the wrapped instance's.
    @property
    def compresses_stacks(self) -> bool:  # type: ignore[override]
        """As the wrapped policy says."""
        return self.inner.compresses_stacks

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """The wrapped policy's."""
        return self.inner.stack_key(evidence, budget)


@dataclass(frozen=True)
class SlotWrapper(Wrapper):
    """Base of wrappers that leave the wrapped policy's slots where they are: as many, with the log masses that it gave."""

    @property
    def keeps_slots_unchanged(self) -> bool:  # type: ignore[override]
        """As the wrapped policy says, of the slots that `compress` gives."""
        return self.inner.keeps_slots_unchanged

    @property
    def heads_agree(self) -> bool:  # type: ignore[override]
        """As the wrapped policy says."""
        return self.inner.heads_agree

    @property
    def budget_is_outcome(self) -> bool:
        """As the wrapped policy says."""
        return self.inner.budget_is_outcome

    @property
    def adds_log_mass(self) -> bool:
        """As the wrapped policy says."""
        return self.inner.adds_log_mass


@dataclass(frozen=True)
class RankingWrapper(Wrapper, ScoringPolicy):
    """Base of wrappers that choose by the scores of a ranking, and rank themselves.

    Attributes:
        inner: the ranking.
    """

    inner: ScoringPolicy

    @property
    def num_protected(self) -> int:
        """Tokens per head that the ranking protects."""
        return self.inner.num_protected
