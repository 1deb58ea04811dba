"""Whether a model has positions for a context and, behind it, for the second pass that repeats it part by part."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from functools import cached_property

from evaluators.tokenizer import Tokenizer


@dataclass(frozen=True)
class RepeatRoom:
    """Of a model with `max_positions`, whose words for asking come from `tokenizer`."""

    tokenizer: Tokenizer
    max_positions: int

    def lacking(self, num_tokens: int) -> str | None:
        """Why a context of so many tokens cannot be repeated, with the longest that can; None where it can."""
        try:
            longest = self._longest
        # A tokenizer is not ours: one that cannot say the words costs the rows that need them, as it would in the run.
        except Exception as error:  # noqa: BLE001
            return f"its second pass cannot be asked for with this tokenizer: {type(error).__name__}: {error}"
        if num_tokens <= longest:
            return None
        return (
            f"its second pass repeats the context of {num_tokens:,} tokens behind it, part by part, and of the model's "
            f"{self.max_positions:,} positions that leaves a context {longest:,}; lower model.max_prompt_tokens, or a task's "
            f"length, by {num_tokens - longest:,} or more"
        )

    @cached_property
    def _longest(self) -> int:
        """The most tokens of a context that can be repeated."""
        from kvmerger.models.repeat_words import repeat_words
        from kvmerger.prefill.repeat import most_positions

        words = repeat_words(self.tokenizer)
        lengths = range(1, self.max_positions)
        return bisect.bisect_right(lengths, self.max_positions, key=lambda it: most_positions(it, words))
