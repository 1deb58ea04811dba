"""Wrappers that add a decode rule: the wrapped policy compresses the prompt, then the rule drops a slot for each new token.

The prompt is read with its whole cache and compressed once, at its end. Streaming the prompt itself through a shrinking
cache would change every hidden state behind the first eviction, could share no prefill, and diverges where values are
merged. So these rows measure what the rule does to an *answer* (their counter ``is_prompt_streamed`` is 0). From the end of
the tail on the number of slots is constant.

Shapes: H KV heads, N tokens, S kept slots.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable
from dataclasses import dataclass, replace

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, num_slots_for
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.decode_rule import AnswerRule
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.parameters import require_count
from kvmerger.policies.registry import name_of, path_of
from kvmerger.policies.wrapper import SlotWrapper
from kvmerger.prefill.evidence import ATTENTION_MASS, Evidence, Need


@dataclass(frozen=True)
class DecodingPolicy(SlotWrapper):
    """Base of wrappers that add a decode rule to a policy. Subclasses give `decode_rule`.

    Attributes:
        inner: the wrapped policy, which compresses the prompt. It has no decode rule of its own.
        room: tokens of the answer that come before the first slot leaves. A row that reads no more of them answers bit
            for bit as without the rule; forced along another answer, token by token, it is equal but for rounding.
    """

    room: int = 0

    def __post_init__(self) -> None:
        """Refuse a second rule, and a room that is no number of tokens."""
        # Any seed will do: only whether there is a rule is asked.
        if self.inner.decode_rule(0) is not None:
            raise PolicyError(f"{path_of(self.inner)} acts during decoding already; only one rule can")
        require_count(name_of(self), "room", self.room, at_least=0)

    @property
    def num_needed(self) -> int:
        """Slots that every head must have at the end of the prompt, so that the rule has a choice."""
        return 1

    @property
    def needed_for(self) -> str:
        """What `num_needed` slots are for and which parameter makes them fewer: words of an error."""
        return "a slot to give up"

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """Raise `BudgetError` where the wrapped policy does, or where the rule would have too few slots to choose from."""
        super().check(shape, budget)
        # How many slots come of a like budget, or of a threshold, is known in `compress`.
        if not isinstance(budget, LikeVariant) and not self.budget_is_outcome:
            self._require_slots(num_slots_for(budget, shape.num_tokens))

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """The wrapped policy's key, and the budget."""
        # Layers of unequal budgets would look like heads of unequal lengths, which a rule may refuse.
        return super().stack_key(evidence, budget), budget

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """What the wrapped policy keeps.

        Raises:
            BudgetError: a head has fewer slots than `num_needed`, or the wrapped policy raised it.
        """
        kept = self.inner.compress(layer, evidence, budget)
        self._require_slots(min(kept.num_slots_H))
        return kept

    def check_answering(self, num_tokens: int, num_slots: int) -> None:
        """Raise `BudgetError` where the rule has too few slots to choose from, or the prompt alone takes more."""
        self._require_slots(num_slots)
        if num_slots < num_tokens:
            raise BudgetError(
                f"{name_of(self)} lets one slot leave for each token of the answer, and the prompt of {num_tokens} tokens, "
                f"which is kept whole, takes more than the budget's {num_slots} slots; give it {num_tokens} or more"
            )

    def _require_slots(self, num_slots: int) -> None:
        if num_slots < self.num_needed:
            raise BudgetError(
                f"{name_of(self)} needs {self.num_needed} slots per head ({self.needed_for}), and the budget "
                f"leaves {num_slots}; raise the budget or lower that"
            )

    @abc.abstractmethod
    def decode_rule(self, prompt_seed: int) -> AnswerRule:
        """The rule this adds."""


class ScoredDecodingPolicy(DecodingPolicy):
    """Base of wrappers whose rule goes on adding to the attention that each slot received in prefill."""

    def needs_to_keep_all(self) -> frozenset[Need]:
        """The attention mass that the rule starts from."""
        return frozenset({ATTENTION_MASS})

    def keep_all(self, layer: LayerCache, evidence: Evidence) -> LayerCache:
        """Every slot, with the attention its token received in prefill (fp32)."""
        return replace(layer, score_S=evidence.get(ATTENTION_MASS).flatten())

    def needs(self) -> frozenset[Need]:
        """What the wrapped policy reads, and the attention mass that the rule starts from."""
        return super().needs() | {ATTENTION_MASS}

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """What the wrapped policy keeps, each slot with the attention its token received in prefill (fp32)."""
        kept = super().compress(layer, evidence, budget)
        if kept.next_position is not None:
            raise PolicyError(
                f"{name_of(self)} starts from the attention that each slot's token received, and finds the token by the "
                f"slot's position, which {name_of(self.inner)} changes; put a rule such as streaming_llm_decode behind it"
            )
        mass_HN = evidence.get(ATTENTION_MASS)
        # Positions are indices here, as the compressed part starts at position 0. A merged slot gets its pivot's mass alone.
        # Clamped, since a user's policy kept them: out of range, an index takes the process with it on CUDA. What is wrong
        # with the positions is told once all layers are compressed.
        position_S = kept.position_S.long().clamp(0, evidence.num_tokens - 1)
        return replace(kept, score_S=mass_HN[kept.head_S, position_S])
