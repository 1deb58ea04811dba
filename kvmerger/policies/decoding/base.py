"""What may follow a policy to go on where it ends: the prompt is compressed by what stands in front, then a rule acts.

The prompt is read with its whole cache and compressed once, at its end, without merging anything for the rule's sake.
Streaming the prompt itself through a cache that shrinks on the way would change every hidden state behind the first
eviction, could not share a prefill with other variants, and for value merging diverges. So these rows measure what the
rule does to an *answer*; their counter ``is_prompt_streamed`` is 0 for that reason. Then the tail is read, and from there
the number of slots is constant: a token in, a slot out.

Shapes: H KV heads, N tokens, S kept slots.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, num_slots_for
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.decode_rule import DecodeRule
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.parameters import require_count
from kvmerger.prefill.evidence import ATTENTION_MASS, Evidence, Need


@dataclass(frozen=True)
class DecodingPolicy(Policy):
    """Base of wrappers that add a decode rule to a policy. Subclasses give `decode_rule`.

    Attributes:
        inner: compresses the prompt. Any policy without a decode rule of its own.
        room: tokens of the answer that come before the first slot leaves; a row that reads no more of them answers bit
            for bit as without the rule. Forced along another answer it is equal but for rounding: its tokens come one
            by one.
    """

    inner: Policy
    room: int = 0

    def __post_init__(self) -> None:
        """Refuse a second rule, and a room that is no number of tokens."""
        if self.inner.decode_rule(0) is not None:
            raise PolicyError(f"{self.inner} acts during decoding already; only one rule can")
        require_count(type(self).__name__, "room", self.room, at_least=0)

    @property
    def keeps_slots_unchanged(self) -> bool:  # type: ignore[override]
        """Whether what stands in front keeps them: that is before the first token of the answer."""
        return self.inner.keeps_slots_unchanged

    @property
    def budget_is_outcome(self) -> bool:
        """As in front."""
        return self.inner.budget_is_outcome

    @property
    def parts(self) -> tuple[Policy, ...]:
        """What stands in front, then this."""
        return (*self.inner.parts, self)

    @property
    def num_needed(self) -> int:
        """Slots every head must have at the end of the prompt for the rule to make sense; the remedy names why."""
        return 1

    @property
    def needed_for(self) -> str:
        """What `num_needed` slots are, and which parameter makes them fewer."""
        return "a slot to give up"

    def needs(self) -> frozenset[Need]:
        """What stands in front reads."""
        return self.inner.needs()

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """What stands in front asks for, and a budget that leaves the rule something to choose from."""
        self.inner.check(shape, budget)
        if not isinstance(budget, LikeVariant) and not self.budget_is_outcome:
            self._require_slots(num_slots_for(budget, shape.num_tokens))

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """As in front."""
        return self.inner.allocate(budget_L, evidence_L)

    @property
    def compresses_stacks(self) -> bool:  # type: ignore[override]
        """As in front."""
        return self.inner.compresses_stacks

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """As in front, and the budget: heads of a stack that differ are heads of a layer that differ."""
        return self.inner.stack_key(evidence, budget), budget

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """What stands in front keeps.

        Raises:
            BudgetError: a head has fewer slots than `num_needed`, or what stands in front raised it.
        """
        kept = self.inner.compress(layer, evidence, budget)
        self._require_slots(min(kept.num_slots_H))
        return kept

    def _require_slots(self, num_slots: int) -> None:
        if num_slots < self.num_needed:
            raise BudgetError(
                f"{type(self).__name__} needs {self.num_needed} slots per head ({self.needed_for}), and the budget "
                f"leaves {num_slots}; raise the budget or lower that"
            )

    @abc.abstractmethod
    def decode_rule(self, prompt_seed: int) -> DecodeRule:
        """The rule this adds."""


class ScoredDecodingPolicy(DecodingPolicy):
    """Base of those whose rules go on adding to the attention that each slot received in prefill."""

    def needs(self) -> frozenset[Need]:
        """What stands in front reads, and the attention mass that the rule starts from."""
        return super().needs() | {ATTENTION_MASS}

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """What stands in front keeps, each slot with the attention its token received in prefill.

        A merged slot has its pivot's. The scores are 4 more bytes per slot, and count as such.
        """
        kept = super().compress(layer, evidence, budget)
        mass_HN = evidence.get(ATTENTION_MASS)
        return replace(kept, score_S=mass_HN[kept.head_S, kept.position_S.long()])
