"""A text far longer than the model reads is cut by characters before it is tokenised, where truncation would drop it anyway.

A tokenizer takes some 300 bytes of memory for each character, and ends the process where there is no more. What is kept
is what truncation keeps, and some more, so that the prompt has the same tokens.
"""

from __future__ import annotations

from dataclasses import replace

from evaluators.item import BenchmarkItem
from evaluators.tokenizer import PromptError, Tokenizer, encode

MOST_CHARS = 2_000_000
"""Shorter texts are tokenised whole: some seconds and 1 GiB."""
CHARS_BEFORE_CUT = "chars_before_cut"
"""Key of an item's metadata: how many characters the text had of which the middle was cut."""
_SPARE_TOKENS = (
    1_000  # more than are kept: how the last ones before a cut are cut into tokens depends on what follows
)
_CHARS_PER_TOKEN = 8  # to begin with; most texts have 3 to 5


def num_chars(item: BenchmarkItem) -> int:
    """Characters of the user's text, without joining it."""
    return len(item.before_context) + len(item.context) + len(item.after_context)


def without_middle(item: BenchmarkItem, tokenizer: Tokenizer, max_prompt_tokens: int) -> BenchmarkItem:
    """The item without the middle (or end) of its context that truncation to so many tokens drops in any case.

    The item itself where it has no more than `MOST_CHARS` characters or the model reads them all. Otherwise its metadata has
    `CHARS_BEFORE_CUT`.
    Raises PromptError where it is not the context that is too long.
    """
    whole = num_chars(item)
    if whole <= MOST_CHARS or item.is_generated:
        return item
    is_middle = item.truncation_separator is None
    num_first = max_prompt_tokens // 2 if is_middle else max_prompt_tokens
    first = _chars_of_tokens(item.before_context, item.context, num_first, tokenizer, from_end=False)
    last = 0
    if is_middle:
        last = _chars_of_tokens(item.after_context, item.context, num_first, tokenizer, from_end=True)
    if first + last >= len(item.context):
        return item
    context = item.context[:first] + item.context[len(item.context) - last :]
    return replace(item, context=context, metadata={**item.metadata, CHARS_BEFORE_CUT: whole})


def _chars_of_tokens(
    beside: str, context: str, num_tokens: int, tokenizer: Tokenizer, *, from_end: bool
) -> int:
    """So many characters of the context's beginning (or end) that they have the tokens, together with `beside`."""
    if len(beside) > MOST_CHARS:
        raise PromptError(
            f"the text {'behind' if from_end else 'before'} the context has {len(beside):,} characters, and only a "
            f"context may have more than {MOST_CHARS:,}; put it there."
        )
    wanted = max(0, num_tokens) + _SPARE_TOKENS
    size = _CHARS_PER_TOKEN * wanted
    while True:
        text = context[max(0, len(context) - size) :] + beside if from_end else beside + context[:size]
        # Blanks may take a hundred characters a token: asked, not guessed.
        if size >= len(context) or len(encode(text, tokenizer, (range(len(text)),)).ids) >= wanted:
            return min(size, len(context))
        size *= 2
