"""Prompts that are too long lose what their task says, before they are put into a chat template."""

from __future__ import annotations

from evaluators.item import BenchmarkItem
from evaluators.tokenizer import Encoding, PromptError, Tokenizer, decode, encode, plain_ids

MIN_LIMIT_TOKENS = 2  # one token on either side of a middle cut


def truncated(item: BenchmarkItem, tokenizer: Tokenizer, max_tokens: int) -> tuple[str, bool]:
    """The user's text, and whether it had to be cut to fit."""
    if max_tokens < MIN_LIMIT_TOKENS:
        raise PromptError(f"max_prompt_tokens is {max_tokens}; give at least {MIN_LIMIT_TOKENS}.")
    encoding = user_encoding(item, tokenizer)
    if len(encoding.ids) <= max_tokens:
        return item.prompt_text, False
    if item.truncation_separator is None:
        return _cut_middle(encoding, tokenizer, max_tokens), True
    return _cut_before_question(item, item.truncation_separator, encoding, tokenizer, max_tokens), True


def _cut_middle(encoding: Encoding, tokenizer: Tokenizer, max_tokens: int) -> str:
    """LongBench's cut: first and last half of the tokens, decoded and joined as text."""
    half = max_tokens // 2  # of an odd limit one token stays unused, as in pred.py
    # Decoding leaves the BOS out, and encoding the text puts it back. The joined text may have a token more than the limit.
    return decode(encoding.ids[:half], tokenizer) + decode(encoding.ids[-half:], tokenizer)


def _cut_before_question(
    item: BenchmarkItem, separator: str, encoding: Encoding, tokenizer: Tokenizer, max_tokens: int
) -> str:
    """ZeroSCROLLS' cut: as much of what precedes the question as fits, the separator, the whole question.

    A token is kept whole or not at all, so no character is halved.
    """
    end = separator + item.after_context
    room = max_tokens - len(plain_ids(end, tokenizer))
    if room < 1:
        raise PromptError(
            f"{item.item_id}: the question and the note on what was cut need {max_tokens - room} tokens; "
            f"max_prompt_tokens is {max_tokens}, raise it."
        )
    kept = encoding.starts[room] if room < len(encoding.starts) else encoding.ends[-1]
    return item.prompt_text[: min(kept, len(item.before_context + item.context))] + end


def user_encoding(item: BenchmarkItem, tokenizer: Tokenizer) -> Encoding:
    """The user's text with BOS, untruncated."""
    return encode(item.prompt_text, tokenizer, (range(len(item.prompt_text)),))
