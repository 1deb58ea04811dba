"""Both query modes see exactly the same token ids: a prompt is encoded once, then split at one token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from evaluators.continuation import needs_blank
from evaluators.item import BenchmarkItem
from evaluators.rendering import RenderedPrompt, render_follow_up, render_prompt
from evaluators.tokenizer import (
    Encoding,
    PromptError,
    Tokenizer,
    adds_bos,
    as_seen,
    control_tokens,
    decode,
    encode,
    num_tokens_before,
    plain_ids,
    without_bos,
)
from evaluators.truncation import MIN_LIMIT_TOKENS, truncated, user_encoding

__all__ = [
    "MIN_LIMIT_TOKENS",
    "EarlierTurn",
    "PromptError",
    "QueryMode",
    "RenderedPrompt",
    "TokenizedPrompt",
    "Tokenizer",
    "num_prompt_tokens",
    "num_text_tokens",
    "render_prompt",
    "self_check",
    "tokenize_item",
]


class QueryMode(StrEnum):
    """Whether the question is seen by compression (aware) or comes after it (agnostic)."""

    AWARE = "query_aware"
    AGNOSTIC = "query_agnostic"


class EarlierTurn(NamedTuple):
    """A question that was asked before, and the most tokens of the model's own answer to it, which follows it."""

    tail_ids: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """What the engine is given: `context_ids` are compressed, `tail_ids` (at least one) go through extend.

    `gold_ids` is the first gold answer as it continues the prompt, without EOS; () when there is none, and
    `no_gold_reason` says why where the item has one all the same. `spelled_controls` are the control tokens that the
    item's own text spells out, and that are plain text in the prompt; `meant_controls` are those that it spells out and
    the prompt holds, as the tokenizer does not mark them special.
    `num_original_tokens` is the length of the whole input had it not been truncated. `stop_ids` end the answer
    besides the model's own end tokens, from its second token on. Of an item that `is_context_free` all of the user's text is
    in `context_ids`, in both modes, and none of it is compressed. Where the item's question follows on others, those are
    `earlier`, and `tail_ids` begins behind the answer to the last of them.
    """

    context_ids: tuple[int, ...]
    tail_ids: tuple[int, ...]
    gold_ids: tuple[int, ...]
    is_truncated: bool
    num_original_tokens: int
    stop_ids: tuple[int, ...] = ()
    no_gold_reason: str = ""
    spelled_controls: tuple[str, ...] = ()
    meant_controls: tuple[str, ...] = ()
    is_context_free: bool = False
    earlier: tuple[EarlierTurn, ...] = ()

    @property
    def most_tail_tokens(self) -> int:
        """Tokens that may stand between what is compressed and the answer."""
        return len(self.tail_ids) + sum(len(turn.tail_ids) + turn.max_new_tokens for turn in self.earlier)


def num_prompt_tokens(item: BenchmarkItem, tokenizer: Tokenizer) -> int:
    """Tokens of the whole input (template, prompt, answer prefix, BOS) without truncation."""
    rendered = render_prompt(item, item.prompt_text, tokenizer)
    return len(encode(rendered.text, tokenizer, rendered.data).ids)


def num_text_tokens(item: BenchmarkItem, tokenizer: Tokenizer) -> int:
    """Tokens of the user's text with BOS, which `max_prompt_tokens` limits, without truncation."""
    return len(user_encoding(item, tokenizer).ids)


def tokenize_item(
    item: BenchmarkItem, tokenizer: Tokenizer, mode: QueryMode, max_prompt_tokens: int
) -> TokenizedPrompt:
    """Turn an item into token ids, cut the task's own way when the user's text exceeds `max_prompt_tokens`.

    As in LongBench's pred.py the limit is on the user's text (with BOS); template and answer prefix come on
    top.
    Raises PromptError when no sound prompt results (see `self_check`).
    """
    user_text, is_truncated = truncated(item, tokenizer, max_prompt_tokens)
    rendered = render_prompt(item, user_text, tokenizer)
    # Encoded whole and then split: two parts encoded by themselves would have other tokens at the seam.
    encoding = encode(rendered.text, tokenizer, rendered.data)
    split = _split_index(item, rendered, encoding, tokenizer, mode)
    gold_ids = _gold_ids(item, rendered, encoding.ids, tokenizer)
    prompt = TokenizedPrompt(
        context_ids=encoding.ids[:split],
        tail_ids=encoding.ids[split:],
        gold_ids=gold_ids,
        is_truncated=is_truncated,
        num_original_tokens=num_prompt_tokens(item, tokenizer) if is_truncated else len(encoding.ids),
        stop_ids=_newline_ids(tokenizer) if item.stop_at_newline else (),
        no_gold_reason="the first gold answer is empty" if item.answers and not gold_ids else "",
        spelled_controls=encoding.spelled,
        meant_controls=encoding.meant,
        is_context_free=item.is_context_free,
    )
    self_check(prompt, item, tokenizer)
    return _followed_up(prompt, item, tokenizer, mode) if item.follow_ups else prompt


def _followed_up(
    first: TokenizedPrompt, item: BenchmarkItem, tokenizer: Tokenizer, mode: QueryMode
) -> TokenizedPrompt:
    """The prompt of an item's last question, from that of its first one."""
    if mode is QueryMode.AWARE:
        raise PromptError(
            f"{item.item_id}: a later question of a conversation comes when the cache is compressed already, so no policy "
            "can have seen it; set query_mode: query_agnostic."
        )
    tails, spelled, meant = [first.tail_ids], list(first.spelled_controls), list(first.meant_controls)
    for follow_up in item.follow_ups:
        rendered = render_follow_up(item, follow_up.text, tokenizer)
        encoding = encode(rendered.text, tokenizer, rendered.data)
        # Without a template the text goes on, and no blank comes before its first word.
        tails.append(
            without_bos(encoding, tokenizer).ids
            if rendered.ends_in_header
            else plain_ids(rendered.text, tokenizer, is_continuation=True)
        )
        spelled += encoding.spelled
        meant += encoding.meant
    # Of the last: an answer stands behind it alone.
    gold_ids = _gold_ids(item, rendered, encoding.ids, tokenizer)
    answers = (follow_up.answer_tokens for follow_up in item.follow_ups)
    return replace(
        first,
        tail_ids=tails[-1],
        gold_ids=gold_ids,
        no_gold_reason="the first gold answer is empty" if item.answers and not gold_ids else "",
        num_original_tokens=first.num_original_tokens + sum(map(len, tails[1:])),
        spelled_controls=tuple(dict.fromkeys(spelled)),
        meant_controls=tuple(dict.fromkeys(meant)),
        earlier=tuple(map(EarlierTurn, tails[:-1], answers)),
    )


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
            "look for a chat template that repeats it."
        )
    prefix = item.answer_prefix
    if not _ends_in(prefix, ids, tokenizer) and not _ends_in(as_seen(prefix, tokenizer), ids, tokenizer):
        raise PromptError(
            f"{item.item_id}: the input ends in {_ending(prefix, ids, tokenizer)!r}, not in the answer prefix {prefix!r}."
        )


def _ends_in(text: str, ids: tuple[int, ...], tokenizer: Tokenizer) -> bool:
    return _ending(text, ids, tokenizer).strip().endswith(text.strip())


def _ending(text: str, ids: tuple[int, ...], tokenizer: Tokenizer) -> str:
    """As many of the last tokens, as text, as `text` can have."""
    num_last = len(text.encode()) + 1  # a token is at least a byte
    return decode(ids[-num_last:], tokenizer, skip_special_tokens=False)


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
    # With nothing to compress there is nothing to withhold: all policies share one prefill of the whole text.
    if mode is QueryMode.AWARE or item.is_context_free:
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
    answer = _without_eos(item.answers[0], tokenizer) if item.answers else ""
    if not answer.strip():
        return ()
    blank = "" if rendered.ends_in_header or not needs_blank(rendered.text, answer) else " "
    text = rendered.text + blank + answer
    joint = encode(text, tokenizer, (*rendered.data, range(len(rendered.text), len(text)))).ids
    # By itself where its first character would change how the prompt's end is cut into tokens.
    has_same_start = joint[: len(ids)] == ids
    gold = joint[len(ids) :] if has_same_start else plain_ids(blank + answer, tokenizer, is_continuation=True)
    return tuple(token for token in gold if token != tokenizer.eos_token_id)


def _without_eos(answer: str, tokenizer: Tokenizer) -> str:
    """The answer without the end token that some data sets write behind it."""
    eos = tokenizer.eos_token_id
    mark = control_tokens(tokenizer).get(eos, "") if eos is not None else ""
    while mark and answer.endswith(mark):
        answer = answer.removesuffix(mark)
    return answer
