"""Base of policies that take no budget: how many slots stay is read off the prompt."""

from __future__ import annotations

from dataclasses import dataclass

from kvmerger.budget import AskedBudget
from kvmerger.policies.selection import SelectingPolicy


@dataclass(frozen=True)
class OutcomePolicy(SelectingPolicy):
    """Base of policies without a budget. Subclasses give `select`, and keep a prompt whole that is too short for them.

    Their names stand in `kvmerger.variant_names.OUTCOMES` too, since an entry without a budget is read before any class is
    there.
    """

    @property
    def budget_is_outcome(self) -> bool:
        """Always: the prompt decides."""
        return True

    def budget_refusal(self, budget: AskedBudget | None) -> str | None:
        """Why it takes none: the end of a sentence."""
        if budget is None:
            return None
        return (
            f"keeps as many slots as the prompt asks for and takes no budget, got {budget}; leave the budget out, and give "
            f"others `budget: {{like: …}}` with its label to compare at its slots"
        )
