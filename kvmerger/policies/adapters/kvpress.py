"""kvpress's presses as policies: ``{name: kvpress:SnapKVPress, compression_ratio: 0.5, window_size: 32}``.

A press runs unchanged on the prefill that all variants share. What it drops is really dropped, also where kvpress would only
mask it, and one that ranks may be followed by whatever follows a ranking of ours.

Shapes: H KV heads, N tokens, K kept slots of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvmerger.budget import (
    AskedBudget,
    Budget,
    BudgetError,
    BudgetSpec,
    BytesLike,
    LikeVariant,
    effective_ratio,
    label_referred_to,
    num_slots_for,
)
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.adapters import presses
from kvmerger.policies.adapters.kinds import Facts, Gives, facts_of
from kvmerger.policies.adapters.press_evidence import kept_need, scores_need, slots_needs
from kvmerger.policies.base import CacheShape, Policy
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.policies.selection import SelectingPolicy
from kvmerger.prefill.evidence import Evidence, Need

MOST_WEIGHED_TOKENS = 4096
"""Longer prompts are refused to presses that read attention weights: a layer of 32 heads holds 2 GiB of them in fp32."""
_BY_THE_PROMPT = (0, 0.0)


class _Press(Policy):
    """What all policies made of presses say of themselves. ``press`` is the press's text (`presses.text_of`)."""

    press: str

    # Which tokens a press keeps is known only once it has run; who needs heads to agree looks at that too.
    heads_agree = True

    @property
    def facts(self) -> Facts:
        """What is known of the press."""
        return facts_of(self.press)

    @property
    def given_name(self) -> str:
        """As a sweep names it: ``kvpress:SnapKVPress``."""
        return presses.path_in(self.press)

    @property
    def code_version(self) -> str:
        """kvpress's version, and the code of presses of others."""
        return presses.code_version(self.press)

    @property
    def budget_is_outcome(self) -> bool:
        """Whether the press follows no ratio that is set from outside."""
        return not self.facts.has_budget

    def budget_refusal(self, budget: AskedBudget | None) -> str | None:
        """A press without a ratio takes no budget, one with a ratio needs it; like another variant only where it scores."""
        if self.budget_is_outcome:
            return (
                None
                if budget is None
                else f"takes no budget: its parameters and the prompt decide; leave {budget} out"
            )
        if isinstance(budget, LikeVariant | BytesLike) and self.facts.gives is not Gives.SCORES:
            return (
                f"is told its ratio in prefill, before {label_referred_to(budget)!r} has run: give it a fraction, a number "
                f"of slots or a fraction of bytes"
            )
        return super().budget_refusal(budget)

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """Raise `BudgetError` for a prompt of one token, and for a long one where attention weights are read."""
        if shape.num_tokens < 2:
            raise BudgetError(f"{self.given_name} wants a compressed part of two tokens at least")
        if self.facts.wants_attention and shape.num_tokens > MOST_WEIGHED_TOKENS:
            raise BudgetError(
                f"{self.given_name} reads a weight for each pair of tokens, and the compressed part has {shape.num_tokens}, "
                f"more than {MOST_WEIGHED_TOKENS}; our own observed_attention needs none"
            )

    def _asked(self, shape: CacheShape, budget: BudgetSpec | None) -> tuple[int, float] | None:
        """Slots per head and the ratio that was asked for; None where it cannot be known in prefill."""
        if self.budget_is_outcome:
            return _BY_THE_PROMPT
        if budget is None or isinstance(budget, LikeVariant):
            return None
        return num_slots_for(budget, shape.num_tokens), effective_ratio(budget, shape.num_tokens)

    def _allowed(self, budget: Budget) -> tuple[int, float]:
        """The same of a layer's budget.

        Raises:
            BudgetError: heads may keep unlike numbers.
        """
        if self.budget_is_outcome:
            return _BY_THE_PROMPT
        if len(set(budget.num_slots_H)) > 1:
            raise BudgetError(
                f"{self.given_name} is told one ratio for all heads, got the slots {budget.num_slots_H}"
            )
        return budget.num_slots_H[0], budget.asked_ratio


@dataclass(frozen=True)
class ScoredPress(_Press, ScoringPolicy):
    """Keep the tokens that a press scores highest."""

    press: str

    compresses_stacks = True

    def needs(self) -> frozenset[Need]:
        """The press's scores."""
        return frozenset({scores_need(self.press)})

    def scores(self, evidence: Evidence) -> Tensor:
        """The press's scores, the same at every budget: fp32 (H, N)."""
        return evidence.get(scores_need(self.press))


@dataclass(frozen=True)
class SelectingPress(_Press, SelectingPolicy):
    """Keep the tokens that a press keeps."""

    press: str

    compresses_stacks = True
    heads_differ = True
    layers_differ = True

    def needs_at(self, shape: CacheShape, budget: BudgetSpec | None) -> frozenset[Need]:
        """What the press keeps at this budget."""
        asked = self._asked(shape, budget)
        return frozenset() if asked is None else frozenset({kept_need(self.press, *asked)})

    def select(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Which tokens the press keeps: bool (H, N)."""
        return evidence.get(kept_need(self.press, *self._allowed(budget)))


@dataclass(frozen=True)
class ChangingPress(_Press):
    """Keep the keys and values that a press leaves."""

    press: str

    keeps_slots_unchanged = False
    layers_differ = True

    def needs_at(self, shape: CacheShape, budget: BudgetSpec | None) -> frozenset[Need]:
        """What the press leaves at this budget."""
        asked = self._asked(shape, budget)
        return frozenset() if asked is None else frozenset(slots_needs(self.press, *asked))

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """The slots that the press leaves, with the positions of their tokens or new ones."""
        slots, positions = slots_needs(self.press, *self._allowed(budget))
        (k_HKD, v_HKD), position_HK = evidence.get(slots), evidence.get(positions)
        num_heads, num_slots, _ = k_HKD.shape
        return LayerCache(
            k_HKD.flatten(0, 1),
            v_HKD.flatten(0, 1),
            position_HK.flatten(),
            (num_slots,) * num_heads,
            next_position=num_slots if self.facts.rerotates else None,
        )


_CLASSES: dict[Gives, type[ScoredPress | SelectingPress | ChangingPress]] = {
    Gives.SCORES: ScoredPress,
    Gives.KEPT: SelectingPress,
    Gives.CHANGED: ChangingPress,
}


def maker_of(path: str) -> tuple[Callable[..., Policy], list[str]] | None:
    """What makes a policy of the press at ``module:Name``, and its parameters; None where no press is.

    Raises:
        VariantError: kvpress has no such press, or cannot be imported.
    """
    found = presses.found_at(path)
    if found is None:
        return None

    def make(**params: Any) -> Policy:
        text = presses.text_of(path, params)
        return _CLASSES[facts_of(text).gives](text)

    # The ratio is the budget's, which is no parameter.
    return make, [name for name in presses.parameters_of(found) if name != "compression_ratio"]
