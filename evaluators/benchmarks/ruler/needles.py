"""RULER's eight needle tasks: values hidden in prose, in noise or among other needles, asked for by their keys.

Wording, numbers of needles and depths follow niah.py of NVIDIA/RULER@c3f5e3b4 (Apache-2.0). It draws the place of a
lone needle in noise or needles evenly; here all lone needles visit the depths of the prose tasks, so maps compare.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluators.benchmark import TaskSpec
from evaluators.benchmarks.ruler.draft import GENERATED_UNUSED, NOISE, RulerText, random_of
from evaluators.benchmarks.ruler.filler import Haystack, load_haystack, words_of
from evaluators.item import text_digest
from evaluators.tokenizer import Tokenizer

_BEFORE_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
_BEFORE_MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
_AFTER_ONE = "\nWhat is the special magic {kind} for {query} mentioned in the provided text?"
_AFTER_MANY = "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
# The prefix owns the blank, as upstream: without a chat template it then starts at a token of its own.
_PREFIX_ONE = " The special magic {kind} for {query} mentioned in the provided text is"
_PREFIX_MANY = " The special magic {kind} for {query} mentioned in the provided text are"

Filler = Literal["prose", "noise", "needles"]
_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_NUM_DEPTHS = 40
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


@dataclass(frozen=True, slots=True)
class NeedleTask:
    """One needle task; kinds are "words", "numbers" or "uuids"."""

    about: str
    filler: Filler
    key_kind: str = "words"
    value_kind: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    metric: str = "string_match_all"
    max_new_tokens: int = 128
    tokens_per_unit: int = 25

    @property
    def source_note(self) -> str:
        """What fills the context."""
        prose = "generated; prose of pydoc's topics, or `haystack`: a .txt or .json file"
        return prose if self.filler == "prose" else "generated"

    @property
    def unused_options(self) -> tuple[str, ...]:
        """All of them, but a haystack for prose."""
        return ("data", "revision") if self.filler == "prose" else GENERATED_UNUSED

    def open(self, spec: TaskSpec, tokenizer: Tokenizer) -> NeedleSource:
        """Read the prose, if the task has any."""
        return NeedleSource(self, spec, load_haystack(spec.haystack) if self.filler == "prose" else None)


@dataclass(frozen=True, slots=True)
class NeedleSource:
    """Items without end over one filler."""

    task: NeedleTask
    spec: TaskSpec
    prose: Haystack | None
    num_items: None = None

    @property
    def label(self) -> str:
        """The prose's label, or the kind of filler."""
        return self.prose.label if self.prose else self.task.filler

    @property
    def digest(self) -> str:
        """The filler's exact text; needles are drawn, so there it is their kinds."""
        noise_or_kinds = (
            NOISE if self.task.filler == "noise" else f"{self.task.key_kind} {self.task.value_kind}"
        )
        return self.prose.digest if self.prose else text_digest(noise_or_kinds)

    def draft(self, index: int) -> NeedleDraft:
        """The item's needles, the keys asked for, and where they lie."""
        task, draw = self.task, random_of(self.spec, index)
        # Two keys can be drawn alike; they are then one key with the values of both.
        needles = draw_needles(draw, task.key_kind, task.value_kind, task.num_keys, task.num_values)
        if len(needles) == 1:
            return NeedleDraft(
                self, index, tuple(needles), tuple(needles), (depth_of_item(self.spec.seed, index),)
            )
        # The order of draws is part of every item: one more in between would change all that follow.
        keys = list(dict.fromkeys(needle.key for needle in needles))
        queried = draw.sample(keys, task.num_queries)
        asked = [needle for key in queried for needle in needles if needle.key == key]
        draw.shuffle(needles)
        depths = sorted(draw.sample(official_depths(), len(needles)))
        return NeedleDraft(self, index, tuple(needles), tuple(asked), tuple(depths))


@dataclass(frozen=True, slots=True)
class NeedleDraft:
    """Needles in the order and at the depths (percent) where they lie; `asked` in the order of the question."""

    source: NeedleSource
    index: int
    needles: tuple[Needle, ...]
    asked: tuple[Needle, ...]
    depths: tuple[int, ...]
    most: None = None

    @property
    def least(self) -> int:
        """The needles alone."""
        return 0

    def text(self, size: int) -> RulerText:
        """The needles among `size` sentences of prose, lines of noise, or other needles."""
        is_one = len(self.asked) == 1
        words = {"kind": self._kind(is_one), "query": _listed([needle.key for needle in self.asked])}
        return RulerText(
            before=(_BEFORE_ONE if is_one else _BEFORE_MANY).format(**words),
            context=self._context(size),
            after=(_AFTER_ONE if is_one else _AFTER_MANY).format(**words),
            answer_prefix=(_PREFIX_ONE if is_one else _PREFIX_MANY).format(**words),
            answers=tuple(needle.value for needle in self.asked),
            metadata={**self._asked_depth(is_one), "num_sentences": size},
        )

    def _kind(self, is_one: bool) -> str:
        # Kinds are plurals: of "numbers", one is a "number".
        return self.source.task.value_kind[:-1] if is_one else self.source.task.value_kind

    def _asked_depth(self, is_one: bool) -> dict[str, int]:
        """Where the only needle asked for lies."""
        return {"depth_percent": self.depths[self.needles.index(self.asked[0])]} if is_one else {}

    def _context(self, size: int) -> str:
        units = list(itertools.islice(self._filler(), size))
        # From the last to the first, so that an insertion moves no place still to come.
        for needle, depth in reversed(list(zip(self.needles, self.depths, strict=True))):
            units.insert(size * depth // 100, needle.sentence)
        return (" " if self.source.prose else "\n").join(units)

    def _filler(self) -> Iterator[str]:
        """Units in order, without end: a longer context starts as a shorter one does."""
        if self.source.prose:
            return itertools.cycle(self.source.prose.sentences)
        return itertools.repeat(NOISE) if self.source.task.filler == "noise" else self._other_needles()

    def _other_needles(self) -> Iterator[str]:
        # A stream of its own, so that how much filler fits does not touch the item's other draws.
        task, draw = self.source.task, random_of(self.source.spec, self.index, "other needles")
        while True:
            yield from (
                needle.sentence for needle in draw_needles(draw, task.key_kind, task.value_kind, 1, 1)
            )


def _listed(values: list[str]) -> str:
    """The different values as the authors list them: "a", "a, and b", "a, b, and c"."""
    *first, last = dict.fromkeys(values)
    return f"{', '.join(first)}, and {last}" if first else last


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


def official_depths() -> list[int]:
    """40 depths from 0 to 100 percent of the haystack, ascending."""
    return [int(depth) for depth in np.linspace(0, 100, num=_NUM_DEPTHS).round()]


def depth_of_item(seed: int, index: int) -> int:
    """Depth of item `index`, percent: each run of 40 items visits every depth once, in an order the seed shuffles."""
    depths = official_depths()
    block, place = divmod(index, _NUM_DEPTHS)
    random.Random(f"depths/{seed}/{block}").shuffle(depths)
    return depths[place]
