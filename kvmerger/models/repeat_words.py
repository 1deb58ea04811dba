"""What is said to a model to make it repeat a context, as token ids: the wording is a part of the method that scores by it.

Both sentences are KVzip's own, and so is their place: the instruction, the end of the user's turn, then the context again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_FIRST = "\n\nRepeat the previous context exactly."
_NEXT = "\n\nRepeat the part of the previous context exactly, starting with"
_USERS_WORDS = "#the user's words#"
_WITHOUT_TEMPLATE = "\n"


@dataclass(frozen=True, slots=True)
class RepeatWords:
    """Token ids around a context that is to be repeated in parts.

    Attributes:
        first_ids: asks for the first part.
        next_ids: asks for a later part; the last tokens of the part before follow it.
        suffix_ids: ends the user's turn and starts the model's, as the chat template does; then comes the part itself.
    """

    first_ids: tuple[int, ...]
    next_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]


def repeat_words(tokenizer: Any) -> RepeatWords:
    """The words in the tokens of ``tokenizer`` (transformers')."""
    first, following, suffix = (
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (_FIRST, _NEXT, _suffix(tokenizer))
    )
    return RepeatWords(first, following, suffix)


def _suffix(tokenizer: Any) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        return _WITHOUT_TEMPLATE
    written = tokenizer.apply_chat_template(
        [{"role": "user", "content": _USERS_WORDS}],
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=False,  # templates that know no such switch ignore it
    )
    _, marker, suffix = written.rpartition(_USERS_WORDS)
    return suffix if marker else _WITHOUT_TEMPLATE
