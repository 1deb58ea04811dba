"""Needles are drawn in one order: a key, then its values, then the next key; so are the words and numbers in them."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass

from evaluators.benchmarks.ruler_words import words_of

_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_MIN_VALUE, _MAX_VALUE = 1_000_000, 9_999_999  # seven digits


@dataclass(frozen=True, slots=True)
class Needle:
    """A sentence that gives a key's value; `kind` is the value's, in the plural: "numbers" or "uuids"."""

    kind: str
    key: str
    value: str

    @property
    def sentence(self) -> str:
        """The official wording, plural and all."""
        return _NEEDLE.format(kind=self.kind, key=self.key, value=self.value)


def draw_needles(
    draw: random.Random, key_kind: str, value_kind: str, num_keys: int, num_values: int
) -> list[Needle]:
    """`num_values` needles for each of `num_keys` keys, key by key."""
    needles = []
    for _ in range(num_keys):
        key = _draw(draw, key_kind)
        needles += [Needle(value_kind, key, _draw(draw, value_kind)) for _ in range(num_values)]
    return needles


def _draw(draw: random.Random, kind: str) -> str:
    if kind == "words":
        return f"{draw.choice(words_of('adjective'))}-{draw.choice(words_of('noun'))}"
    if kind == "numbers":
        return str(draw.randint(_MIN_VALUE, _MAX_VALUE))
    assert kind == "uuids", kind
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))
