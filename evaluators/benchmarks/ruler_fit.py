"""The largest amount of filler with which input and answer fit a length, whatever the filler is."""

from __future__ import annotations

from collections.abc import Callable

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.ruler_draft import Draft, length_of
from evaluators.item import BenchmarkItem
from evaluators.prompting import num_prompt_tokens
from evaluators.tokenizer import Tokenizer


def largest_size(
    draft: Draft, make_item: Callable[[int], BenchmarkItem], spec: TaskSpec, tokenizer: Tokenizer, guess: int
) -> int:
    """The most units of the draft with which the item's input and answer fit the length.

    Raises BenchmarkError for a length without room for the fewest.
    """

    def num_tokens(size: int) -> int:
        item = make_item(size)
        return num_prompt_tokens(item, tokenizer) + item.max_new_tokens

    def fits(size: int) -> bool:
        return (draft.most is None or size <= draft.most) and num_tokens(size) <= length_of(spec)

    if not fits(draft.least):
        raise BenchmarkError(
            f"{spec.name}: length {length_of(spec)} has no room for haystack; with "
            f"{make_item(draft.least).max_new_tokens} answer tokens give more than {num_tokens(draft.least)}, "
            "or a smaller max_new_tokens."
        )
    return largest_that_fits(fits, max(guess, draft.least), draft.least)


def largest_that_fits(fits: Callable[[int], bool], guess: int, least: int = 0) -> int:
    """The largest n with fits(n), given fits(least) and that no larger n fits once one does not.

    Steps double from the guess, so a guess that is off by d costs about 2 log2(d) + 2 calls.
    """
    low, high, step = guess, guess + 1, 1
    while fits(high):
        low, high, step = high, high + 2 * step, 2 * step
    while not fits(low):
        low, high, step = max(low - 2 * step, least), low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
