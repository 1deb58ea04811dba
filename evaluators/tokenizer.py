"""Text becomes ids in one way only: nothing is added but the one BOS the tokenizer would add itself."""

from __future__ import annotations

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
    """Token ids and the characters each covers: token i starts at `starts[i]` and ends before `ends[i]`."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a BOS before plain text by itself."""
    bos = tokenizer.bos_token_id
    # A text is tried, because `add_bos_token` is not what a fast tokenizer goes by: its post-processor is.
    return bos is not None and list(tokenizer("a")["input_ids"][:1]) == [bos]


def encode(text: str, tokenizer: Tokenizer) -> Encoding:
    """Encode text, with exactly one BOS in front when the tokenizer adds one and the text does not bring it.

    Raises PromptError when the tokenizer cannot tell which characters a token covers.
    """
    try:
        # Without special tokens: some post-processors also append an EOS, which would end the prompt. BOS is put back below.
        # Not verbose: of a text longer than the model allows it would warn, and such texts are cut later.
        raw = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    except NotImplementedError as error:
        raise PromptError(
            f"{type(tokenizer).__name__} gives no character offsets; use a fast tokenizer (tokenizer.json)."
        ) from error
    ids, spans = list(raw["input_ids"]), list(raw["offset_mapping"])
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos] and adds_bos(tokenizer):
        ids, spans = [bos, *ids], [(0, 0), *spans]
    return Encoding(tuple(ids), tuple(start for start, _ in spans), tuple(end for _, end in spans))


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
