"""Text becomes ids in one way only: nothing is added but the one BOS the tokenizer would add itself.

A control token that an item's own text spells out, as HTML spells "<s>", is read as plain text: data ends no turn.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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
    """

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    spelled: tuple[str, ...] = ()


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
    tokens = _tokens_of(text, tokenizer)
    controls = control_tokens(tokenizer)
    marks = [token for token in tokens if token[0] in controls and text[token[1] : token[2]].strip()]
    spelled = [token for token in marks if any(token[1] < it.stop and token[2] > it.start for it in data)]
    if spelled:
        kept = [token for token in marks if token not in spelled]
        tokens = _plain_between(kept, text, tokenizer)
    bos = tokenizer.bos_token_id
    if bos is not None and (not tokens or tokens[0][0] != bos) and adds_bos(tokenizer):
        tokens = [(bos, 0, 0), *tokens]
    ids, starts, ends = zip(*tokens, strict=True) if tokens else ((), (), ())
    return Encoding(ids, starts, ends, tuple(dict.fromkeys(controls[token] for token, _, _ in spelled)))


def plain_ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of a text from an item, without BOS; a control token that it spells out is plain text."""
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return tuple(tokenizer(text, **options)["input_ids"])


def control_tokens(tokenizer: Tokenizer) -> Mapping[int, str]:
    """The text of every control token by its id; without the token for unknown words, which stands for any text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    unknown = getattr(tokenizer, "unk_token_id", None)
    return {token: str(it) for token, it in added.items() if it.special and token != unknown}


def as_seen(text: str, tokenizer: Tokenizer) -> str:
    """The text as the tokenizer sees it, where that is another spelling of the same characters; else the text itself.

    Qwen's tokenizers compose an "e" and an accent (NFC): a model behind one can never write them apart.
    """
    seen = decode(plain_ids(text, tokenizer), tokenizer, skip_special_tokens=False)
    # What a tokenizer does not know it replaces or drops, and some add a blank: that is no spelling of the text.
    return seen if seen.strip() != text.strip() and _folded(seen) == _folded(text) else text


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _tokens_of(text: str, tokenizer: Tokenizer, **options: bool) -> list[tuple[int, int, int]]:
    """(id, first character, character behind the last) of every token."""
    try:
        # Without special tokens: some post-processors also append an EOS, which would end the prompt.
        # Not verbose: of a text longer than the model allows it would warn, and such texts are cut later.
        raw = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False, **options)
    except NotImplementedError as error:
        raise PromptError(
            f"{type(tokenizer).__name__} gives no character offsets; use a fast tokenizer (tokenizer.json)."
        ) from error
    spans = raw["offset_mapping"]
    return [(token, start, end) for token, (start, end) in zip(raw["input_ids"], spans, strict=True)]


def _plain_between(
    marks: Sequence[tuple[int, int, int]], text: str, tokenizer: Tokenizer
) -> list[tuple[int, int, int]]:
    """The tokens of a text whose only control tokens are `marks`, in their order."""
    tokens, begin = [], 0
    for mark in (*marks, None):
        # Control tokens part a text before anything else is done to it, so what stands between two is encoded by itself.
        piece = text[begin : mark[1] if mark else len(text)]
        found = _tokens_of(piece, tokenizer, split_special_tokens=True) if piece else []
        tokens += [(token, start + begin, end + begin) for token, start, end in found]
        if mark:
            tokens.append(mark)
            begin = mark[2]
    return tokens


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
