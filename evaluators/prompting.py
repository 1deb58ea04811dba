"""Both query modes see exactly the same token ids: a prompt is encoded once, then split at one token."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from evaluators.chat_template import render_question
from evaluators.item import BenchmarkItem
from evaluators.tokenizer import (
    Encoding,
    PromptError,
    Tokenizer,
    adds_bos,
    decode,
    encode,
    num_tokens_before,
)

__all__ = [
    "PromptError",
    "QueryMode",
    "RenderedPrompt",
    "TokenizedPrompt",
    "Tokenizer",
    "num_prompt_tokens",
    "render_prompt",
    "self_check",
    "tokenize_item",
]

_MIN_LIMIT_TOKENS = 2  # one token on either side of a middle cut


class QueryMode(StrEnum):
    """Whether the question is seen by compression (aware) or comes after it (agnostic)."""

    AWARE = "query_aware"
    AGNOSTIC = "query_agnostic"


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """What the engine is given: `context_ids` are compressed, `tail_ids` (at least one) go through extend.

    `gold_ids` is the first gold answer as it continues the prompt, without EOS; () when there is none.
    `num_original_tokens` is the length of the whole input had it not been truncated. `stop_ids` end the answer
    besides the model's own end tokens, from its second token on.
    """

    context_ids: tuple[int, ...]
    tail_ids: tuple[int, ...]
    gold_ids: tuple[int, ...]
    is_truncated: bool
    num_original_tokens: int
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The input as text, with the characters where the user's text ends and where `after_context` starts.

    `question_start` is None when truncation cut into `after_context`. `ends_in_header` says that the answer
    follows the chat template's assistant header directly.
    """

    text: str
    question_start: int | None
    user_end: int
    ends_in_header: bool


def render_prompt(item: BenchmarkItem, user_text: str, tokenizer: Tokenizer) -> RenderedPrompt:
    """Put the user's text into the chat template (unless withheld or absent) and add the answer prefix.

    Raises PromptError when the text is empty or the template does not reproduce it.
    """
    if not user_text.strip():
        raise PromptError(f"{item.item_id}: the prompt is empty; give the item a context or a question.")
    is_chat = item.use_chat_template and bool(tokenizer.chat_template)
    text = render_question(user_text, tokenizer) if is_chat else user_text
    shown = user_text if user_text in text else user_text.strip()  # Llama-3 templates strip the message
    start = text.rfind(shown)  # the last one: a template's own words may hold a short text as well
    if start < 0:
        raise PromptError(f"{item.item_id}: the chat template changes the user's text; use another template.")
    # The question's place is measured from the end: a cut in the middle moves whatever stands behind it.
    after = item.after_context if shown == user_text else item.after_context.rstrip()
    user_end = start + len(shown)
    question_start = user_end - len(after) if shown.endswith(after) else None
    return RenderedPrompt(
        text + item.answer_prefix, question_start, user_end, is_chat and not item.answer_prefix
    )


def num_prompt_tokens(item: BenchmarkItem, tokenizer: Tokenizer) -> int:
    """Tokens of the whole input (template, prompt, answer prefix, BOS) without truncation."""
    return len(encode(render_prompt(item, item.prompt_text, tokenizer).text, tokenizer).ids)


def tokenize_item(
    item: BenchmarkItem, tokenizer: Tokenizer, mode: QueryMode, max_prompt_tokens: int
) -> TokenizedPrompt:
    """Turn an item into token ids, cut the task's own way when the user's text exceeds `max_prompt_tokens`.

    As in LongBench's pred.py the limit is on the user's text (with BOS); template and answer prefix come on
    top.
    Raises PromptError when no sound prompt results (see `self_check`).
    """
    user_text, is_truncated = _truncated(item, tokenizer, max_prompt_tokens)
    rendered = render_prompt(item, user_text, tokenizer)
    # Encoded whole and then split: two parts encoded by themselves would have other tokens at the seam.
    encoding = encode(rendered.text, tokenizer)
    split = _split_index(item, rendered, encoding, tokenizer, mode)
    prompt = TokenizedPrompt(
        context_ids=encoding.ids[:split],
        tail_ids=encoding.ids[split:],
        gold_ids=_gold_ids(item, rendered, encoding.ids, tokenizer),
        is_truncated=is_truncated,
        num_original_tokens=num_prompt_tokens(item, tokenizer) if is_truncated else len(encoding.ids),
        stop_ids=_newline_ids(tokenizer) if item.stop_at_newline else (),
    )
    self_check(prompt, item, tokenizer)
    return prompt


def self_check(prompt: TokenizedPrompt, item: BenchmarkItem, tokenizer: Tokenizer) -> None:
    """Raise PromptError unless both parts hold a token, BOS is right and the answer prefix comes last.

    BOS must occur exactly once, at the front, where the tokenizer adds one by itself; elsewhere the template
    decides.
    """
    ids = prompt.context_ids + prompt.tail_ids
    if not prompt.context_ids or not prompt.tail_ids:
        raise PromptError(
            f"{item.item_id}: of {len(ids)} tokens {len(prompt.context_ids)} are to be compressed and "
            f"{len(prompt.tail_ids)} are tail; both need at least 1: give the item a longer context."
        )
    bos = tokenizer.bos_token_id
    if bos is not None and adds_bos(tokenizer) and (ids.count(bos) != 1 or ids[0] != bos):
        raise PromptError(
            f"{item.item_id}: BOS (id {bos}) occurs {ids.count(bos)} times, not once at the front; "
            "look for its text in the item, or for a chat template that repeats it."
        )
    num_last = len(item.answer_prefix.encode()) + 1  # a token is at least a byte
    ending = decode(ids[-num_last:], tokenizer, skip_special_tokens=False)
    if not ending.strip().endswith(item.answer_prefix.strip()):
        raise PromptError(
            f"{item.item_id}: the input ends in {ending!r}, not in the answer prefix {item.answer_prefix!r}."
        )


def _truncated(item: BenchmarkItem, tokenizer: Tokenizer, max_tokens: int) -> tuple[str, bool]:
    """The user's text, and whether it had to be cut to fit."""
    if max_tokens < _MIN_LIMIT_TOKENS:
        raise PromptError(f"max_prompt_tokens is {max_tokens}; give at least {_MIN_LIMIT_TOKENS}.")
    encoding = encode(item.prompt_text, tokenizer)
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
    room = max_tokens - len(tokenizer(end, add_special_tokens=False, verbose=False)["input_ids"])
    if room < 1:
        raise PromptError(
            f"{item.item_id}: the question and the note on what was cut need {max_tokens - room} tokens; "
            f"max_prompt_tokens is {max_tokens}, raise it."
        )
    kept = encoding.starts[room] if room < len(encoding.starts) else encoding.ends[-1]
    return item.prompt_text[: min(kept, len(item.before_context + item.context))] + end


def _newline_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The one token LongBench's pred.py stops at: the last of a newline's (Llama-2 puts a blank before it)."""
    return (tokenizer("\n", add_special_tokens=False, verbose=False)["input_ids"][-1],)


def _split_index(
    item: BenchmarkItem,
    rendered: RenderedPrompt,
    encoding: Encoding,
    tokenizer: Tokenizer,
    mode: QueryMode,
) -> int:
    if mode is QueryMode.AWARE:
        split_char = rendered.user_end
    elif rendered.question_start is not None:
        split_char = rendered.question_start
    else:
        raise PromptError(
            f"{item.item_id}: truncation cut into the question, which query-agnostic mode keeps whole; "
            "raise max_prompt_tokens."
        )
    # In aware mode nothing may follow the user's text, and the engine needs a tail of at least one token.
    return min(num_tokens_before(split_char, encoding, tokenizer), len(encoding.ids) - 1)


def _gold_ids(
    item: BenchmarkItem, rendered: RenderedPrompt, ids: tuple[int, ...], tokenizer: Tokenizer
) -> tuple[int, ...]:
    if not item.answers:
        return ()
    needs_blank = not (rendered.ends_in_header or rendered.text[-1].isspace())
    continuation = " " + item.answers[0] if needs_blank else item.answers[0]
    joint = encode(rendered.text + continuation, tokenizer).ids
    if joint[: len(ids)] == ids:
        gold = joint[len(ids) :]
    else:  # the answer's first character changed how the prompt's end is cut into tokens
        gold = tuple(tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"])
    return tuple(token for token in gold if token != tokenizer.eos_token_id)
