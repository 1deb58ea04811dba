"""The control that shows what KVMerger's protected tokens are worth: the other slots go by attention, nothing is merged.

Shapes: H KV heads, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvmerger.budget import Budget, BudgetError
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.policies.mergers.protection import ProtectingPolicy
from kvmerger.policies.registry import register
from kvmerger.policies.selection import SelectingPolicy
from kvmerger.prefill.evidence import Evidence, Need, attention_mass


@register("protected_mass")
@dataclass(frozen=True)
class ProtectedMass(ProtectingPolicy, SelectingPolicy):
    """Keep KVMerger's protected tokens and, of the others, those with most attention; evict the rest.

    The control that the gain over H2O is asked to beat: same recent and heavy fractions, same layers kept whole, same
    budgets as ``kvmerger`` (arXiv 2407.08454), and eviction where it merges. In effect H2O with KVMerger's split.
    """

    compresses_stacks = True

    def needs(self) -> frozenset[Need]:
        """Attention to rank tokens by."""
        return frozenset({self._mass_need})

    def select(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Protected tokens, then the most attended: bool (H, N). Ties go to the earlier token.

        Raises:
            BudgetError: a head's budget does not hold what is protected.
        """
        mass_HN = attention_mass(evidence, self._mass_need)
        is_protected_HN = self._protect(mass_HN, budget.asked_ratio)
        # Recent and heavy fractions may add up to more than 1.
        num_protected = min(
            evidence.num_tokens, sum(self._num_protected(budget.asked_ratio, evidence.num_tokens))
        )
        if min(budget.num_slots_H) < num_protected:
            raise BudgetError(
                f"{self._name}: {num_protected} of {evidence.num_tokens} tokens are protected, and the budget is "
                f"{budget.num_slots_H} slots; raise the budget or lower recent_ratio or heavy_ratio"
            )
        return is_among_highest(mass_HN.masked_fill(is_protected_HN, float("inf")), budget.num_slots_H)
