"""Which tokens are special and which punctuation: what a tokenizer knows of ids, and a policy may go by."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from typing import Any

OTHER, SPECIAL, PUNCTUATION = 0, 1, 2


class TokenClasses:
    """The class of each token of a tokenizer (transformers').

    Special are ids that it marks so: a template's own, beginnings and ends. Punctuation is what reads as nothing but ASCII
    punctuation or Unicode's, spaces around it apart. Words of several tokens that a template has (``[INST]``) are neither.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        # Of the many that a template may use, `all_special_ids` has only those with a role of their own.
        self._special = {*tokenizer.all_special_ids, *(id_ for id_, it in added.items() if it.special)}
        self._known: dict[int, int] = {}

    def __call__(self, token_ids: Sequence[int]) -> list[int]:
        """`OTHER`, `SPECIAL` or `PUNCTUATION` for each of ``token_ids``."""
        for token_id in set(token_ids) - self._known.keys():
            self._known[token_id] = self._class_of(token_id)
        return [self._known[token_id] for token_id in token_ids]

    def _class_of(self, token_id: int) -> int:
        if token_id in self._special:
            return SPECIAL
        text = self._tokenizer.decode([token_id]).strip()
        return PUNCTUATION if text and all(map(_is_punctuation, text)) else OTHER


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
