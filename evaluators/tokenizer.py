"""Text becomes ids in one way only: nothing is added but the one BOS the tokenizer would add itself.

A control token that an item's own text spells out, as HTML spells "<s>", is read as plain text: data ends no turn.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_Span = tuple[int, int]
"""A token's first character, and the one behind its last."""


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
    ids, spans = _ids_and_spans(text, tokenizer)
    controls = control_tokens(tokenizer)
    marks = [index for index, token in enumerate(ids) if token in controls]
    spelled = [
        index
        for index in marks
        if any(spans[index][0] < it.stop and spans[index][1] > it.start for it in data)
    ]
    names = tuple(dict.fromkeys(controls[ids[index]] for index in spelled))
    if spelled:
        kept = [(ids[index], spans[index]) for index in marks if index not in spelled]
        ids, spans = _plain_between(kept, text, tokenizer)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos] and adds_bos(tokenizer):
        ids, spans = [bos, *ids], [(0, 0), *spans]
    return Encoding(tuple(ids), tuple(start for start, _ in spans), tuple(end for _, end in spans), names)


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
    marks: Sequence[tuple[int, _Span]], text: str, tokenizer: Tokenizer
) -> tuple[list[int], list[_Span]]:
    """The tokens of a text whose only control tokens are `marks`, in their order."""
    ids: list[int] = []
    spans: list[_Span] = []
    begin = 0
    for token, span in (*marks, (None, (len(text), len(text)))):
        # Control tokens part a text before anything else is done to it, so what stands between two is encoded by itself.
        found, places = _ids_and_spans(text[begin : span[0]], tokenizer, split_special_tokens=True)
        ids += found
        spans += [(start + begin, end + begin) for start, end in places]
        if token is not None:
            ids.append(token)
            spans.append(span)
        begin = span[1]
    return ids, spans


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
