"""Text becomes ids in one way only: nothing is added but the one BOS the tokenizer would add itself.

A control token that an item's own text spells out, as HTML spells "<s>", is read as plain text: data ends no turn.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

_Span = tuple[int, int]
"""A token's first character, and the one behind its last."""


_GUARD = "\0"
# <think>, </tool_call>, <|fim_prefix|>, [TOOL_CALLS]
_MARK = re.compile(r"<\S+>|\[\S+\]")


class PromptError(ValueError):
    """An item cannot be turned into a sound prompt; the message names the item and the remedy."""


class Tokenizer(Protocol):
    """The members we use of a transformers fast tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: Any

    def __call__(self, text: str, **options: Any) -> Mapping[str, Any]:
        """Return `input_ids` and, with `return_offsets_mapping=True`, `offset_mapping` in characters."""
        ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """Return the rendered text, with `tokenize=False`."""
        ...

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        """Return the text of the ids."""
        ...


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids and the characters each covers: token i starts at `starts[i]` and ends before `ends[i]`.

    `spelled` are the control tokens that the data in the text spells out, each once; none of them is among `ids`.
    `meant` are those of its spelled-out tokens that the tokenizer does not mark special: they are among `ids`.
    """

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    spelled: tuple[str, ...] = ()
    meant: tuple[str, ...] = ()


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a BOS before plain text by itself."""
    bos = tokenizer.bos_token_id
    # A text is tried, because `add_bos_token` is not what a fast tokenizer goes by: its post-processor is.
    return bos is not None and list(tokenizer("a")["input_ids"][:1]) == [bos]


def encode(text: str, tokenizer: Tokenizer, data: Sequence[range] = ()) -> Encoding:
    """Encode text, with exactly one BOS in front when the tokenizer adds one and the text does not bring it.

    `data` are the characters that come from an item, where no control token is meant.
    Raises PromptError when the tokenizer cannot tell which characters a token covers.
    """
    ids, spans = _ids_and_spans(text, tokenizer)
    controls = control_tokens(tokenizer)
    marks = [index for index, token in enumerate(ids) if token in controls]
    spelled = [index for index in marks if _is_spelled(controls[ids[index]], spans[index], text, data)]
    names = tuple(dict.fromkeys(controls[ids[index]] for index in spelled))
    unmarked = _unmarked_tokens(tokenizer)
    meant = (
        unmarked[token]
        for token, span in zip(ids, spans, strict=True)
        if token in unmarked and _is_spelled(unmarked[token], span, text, data)
    )
    meant_names = tuple(dict.fromkeys(meant))
    if spelled:
        kept = [index for index in marks if index not in spelled]
        ids, spans = _plain_between(kept, spelled, ids, spans, text, tokenizer)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos] and adds_bos(tokenizer):
        ids, spans = [bos, *ids], [(0, 0), *spans]
    starts, ends = tuple(start for start, _ in spans), tuple(end for _, end in spans)
    return Encoding(tuple(ids), starts, ends, names, meant_names)


def without_bos(encoding: Encoding, tokenizer: Tokenizer) -> Encoding:
    """The encoding without the BOS that `encode` put in front of it."""
    # It covers no character; one that the text brings covers some.
    if encoding.ids[:1] != (tokenizer.bos_token_id,) or encoding.ends[0] > 0:
        return encoding
    return replace(encoding, ids=encoding.ids[1:], starts=encoding.starts[1:], ends=encoding.ends[1:])


def _is_spelled(name: str, span: _Span, text: str, data: Sequence[range]) -> bool:
    """Whether the token at `span` is in the data, and there by its own name."""
    # A token that stands for other text than its own name is none that was spelled out.
    return text[slice(*span)].strip() == name.strip() and any(
        span[0] < it.stop and span[1] > it.start for it in data
    )


def plain_ids(text: str, tokenizer: Tokenizer, *, is_continuation: bool = False) -> tuple[int, ...]:
    """Ids of a text from an item, without BOS; a control token that it spells out is plain text.

    One that continues another text has no blank before its first word but its own.
    """
    marks_start = is_continuation and _behind_guard("a", tokenizer)[0] != _ids_and_spans("a", tokenizer)[0]
    encoded = _behind_guard if marks_start else _plain
    return tuple(encoded(text, tokenizer)[0])


def control_tokens(tokenizer: Tokenizer) -> Mapping[int, str]:
    """The text of every control token by its id; without the token for unknown words, which stands for any text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    unknown = getattr(tokenizer, "unk_token_id", None)
    return {token: str(it) for token, it in added.items() if it.special and token != unknown}


def _unmarked_tokens(tokenizer: Tokenizer) -> Mapping[int, str]:
    """The text of every added token, by its id, that looks like a control token and is not marked as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    # Others are words and runs of blanks, which are text like any other.
    return {
        token: str(it) for token, it in added.items() if not it.special and _MARK.fullmatch(str(it).strip())
    }


def as_seen(text: str, tokenizer: Tokenizer) -> str:
    """The text as the tokenizer sees it, where that is another spelling of the same characters; else the text itself.

    Qwen's tokenizers compose an "e" and an accent (NFC): a model behind one can never write them apart.
    """
    seen = decode(plain_ids(text, tokenizer), tokenizer, skip_special_tokens=False)
    # What a tokenizer does not know it replaces or drops, and some add a blank: that is no spelling of the text.
    return seen if seen.strip() != text.strip() and _folded(seen) == _folded(text) else text


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _ids_and_spans(text: str, tokenizer: Tokenizer, **options: bool) -> tuple[list[int], list[_Span]]:
    try:
        # Without special tokens: some post-processors also append an EOS, which would end the prompt. BOS is put back later.
        # Not verbose: of a text longer than the model allows it would warn, and such texts are cut later.
        raw = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False, **options)
    except NotImplementedError as error:
        raise PromptError(
            f"{type(tokenizer).__name__} gives no character offsets; use a fast tokenizer (tokenizer.json)."
        ) from error
    return list(raw["input_ids"]), list(raw["offset_mapping"])


def _plain_between(
    kept: Sequence[int],
    spelled: Sequence[int],
    ids: Sequence[int],
    spans: Sequence[_Span],
    text: str,
    tokenizer: Tokenizer,
) -> tuple[list[int], list[_Span]]:
    """The tokens with those in `spelled` as plain text; of the control tokens only those in `kept` stay. Both ascend."""
    new_ids: list[int] = []
    new_spans: list[_Span] = []
    # Control tokens part a text before anything else is done to it, so what stands between two is encoded by itself.
    for before, after in itertools.pairwise([-1, *kept, len(ids)]):
        found, places = list(ids[before + 1 : after]), list(spans[before + 1 : after])
        if any(before < index < after for index in spelled):
            begin = spans[before][1] if before >= 0 else 0
            piece = text[begin : spans[after][0] if after < len(ids) else len(text)]
            mark = text[slice(*spans[before])] if before >= 0 else ""
            found, places = _plain_piece(piece, mark, tokenizer)
            places = [(start + begin, end + begin) for start, end in places]
        new_ids += found + list(ids[after : after + 1])
        new_spans += places + list(spans[after : after + 1])
    return new_ids, new_spans


def _plain_piece(piece: str, mark: str, tokenizer: Tokenizer) -> tuple[list[int], list[_Span]]:
    """The tokens of a piece that stands behind the control token `mark`, or is the text's first where that is ""."""
    # Mistral's tokenizers put a blank before a text's first word, and none behind a control token; Llama-2's before both.
    is_alike = _ids_and_spans(mark + "a", tokenizer)[0][1:] == _ids_and_spans("a", tokenizer)[0]
    return (_plain if is_alike or not mark else _behind_guard)(piece, tokenizer)


def _plain(text: str, tokenizer: Tokenizer) -> tuple[list[int], list[_Span]]:
    return _ids_and_spans(text, tokenizer, split_special_tokens=True)


def _behind_guard(text: str, tokenizer: Tokenizer) -> tuple[list[int], list[_Span]]:
    """The tokens of a text that is not at the start: it stands behind a character that no token shares with others."""
    ids, spans = _plain(_GUARD + text, tokenizer)
    first = sum(end <= len(_GUARD) for _, end in spans)
    return ids[first:], [(start - len(_GUARD), end - len(_GUARD)) for start, end in spans[first:]]


def decode(ids: Sequence[int], tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> str:
    """Text of the ids, without the clean-up that would change its blanks (Llama-3 asks for it by default)."""
    return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)


def num_tokens_before(char: int, encoding: Encoding, tokenizer: Tokenizer) -> int:
    """How many leading tokens hold text before the character `char`, a token that straddles it included."""
    previous_end = 0
    for index, (start, end) in enumerate(zip(encoding.starts, encoding.ends, strict=True)):
        # Where nothing so far reaches `char`, the blank just before it belongs to this token, which then straddles it.
        if start >= char and (previous_end >= char or not _begins_with_blank(encoding.ids[index], tokenizer)):
            return index
        previous_end = max(previous_end, end)
    return len(encoding.ids)


def _begins_with_blank(token_id: int, tokenizer: Tokenizer) -> bool:
    # GPT-2 style tokenizers leave a token's own blank out of its offsets; only the token's text tells.
    return decode([token_id], tokenizer)[:1].isspace()
