"""Which steps are not recorded any more, since that has failed too often; told apart by the rules that act in them."""

from __future__ import annotations

from collections import Counter

RuleNames = frozenset[str]
MOST_FAILURES = 2
"""In a row. A failure that passes has passed by the next batch, most likely; and each costs about two eager steps."""


class Refusals:
    """One for all that records a model's steps: a failed recording may cost memory until the process ends."""

    def __init__(self) -> None:
        self._num_failed: Counter[RuleNames] = Counter()

    def __contains__(self, rules: RuleNames) -> bool:
        """Whether steps with these rules are not to be tried, or any step at all."""
        return any(self._num_failed[names] >= MOST_FAILURES for names in (rules, frozenset()))

    def failed(self, rules: RuleNames) -> bool:
        """Count a failure; whether it was the last one there will be."""
        self._num_failed[rules] += 1
        return rules in self

    def succeeded(self, rules: RuleNames) -> None:
        """Begin to count anew."""
        del self._num_failed[rules]
