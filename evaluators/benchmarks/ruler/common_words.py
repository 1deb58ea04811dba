"""RULER's common words: ten words stand 30 times in a numbered list, all others 3 times.

Follows common_words_extraction.py of NVIDIA/RULER@c3f5e3b4 (Apache-2.0), one solved example included; words are
wonderwords', as before that file got a longer list. They are about 8,000; where they run out, as they can beyond
100,000 tokens, items stay shorter.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from evaluators.benchmark import TaskSpec
from evaluators.benchmarks.ruler.draft import GENERATED_UNUSED, RulerText, length_of, random_of
from evaluators.benchmarks.ruler.filler import words_of
from evaluators.item import text_digest
from evaluators.tokenizer import Tokenizer

_BEFORE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
_AFTER = "\nQuestion: What are the 10 most common words in the above list?"
_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
_NUM_COMMON = 10
_SHORT_TOKENS = 4096  # below it the authors repeat less


@dataclass(frozen=True, slots=True)
class _Repeats:
    """How often common and other words stand in the list, and so in the example, which has so many words."""

    common: int
    other: int
    example_common: int
    example_other: int
    num_example_words: int


_SHORT = _Repeats(common=6, other=1, example_common=3, example_other=1, num_example_words=20)
_LONG = _Repeats(common=30, other=3, example_common=10, example_other=3, num_example_words=40)


@dataclass(frozen=True, slots=True)
class CommonWords:
    """The task with its official numbers."""

    about: str = "the ten most common words of a numbered list"
    source_note: str = "generated; wonderwords"
    metric: str = "string_match_all"
    max_new_tokens: int = 120
    tokens_per_unit: int = 12
    unused_options: tuple[str, ...] = GENERATED_UNUSED

    def open(self, spec: TaskSpec, tokenizer: Tokenizer) -> CommonWordsSource:
        """Read the words."""
        return CommonWordsSource(spec, tuple(_all_words()))


@dataclass(frozen=True, slots=True)
class CommonWordsSource:
    """Items without end over one list of words."""

    spec: TaskSpec
    words: tuple[str, ...]
    label: str = "wonderwords"
    num_items: None = None

    @property
    def digest(self) -> str:
        """The words there are; another version of wonderwords has others."""
        return text_digest("\n".join(self.words))

    def draft(self, index: int) -> CommonWordsDraft:
        """The item's words, the common ones first, and its example."""
        repeats = _SHORT if length_of(self.spec) < _SHORT_TOKENS else _LONG
        draw = random_of(self.spec, index)
        words = tuple(draw.sample(self.words, len(self.words)))
        example_words = draw.sample(self.words, repeats.num_example_words)
        shown = _numbered_list(example_words, repeats.example_common, repeats.example_other, draw)
        example = f"{_BEFORE}{shown}{_AFTER}{_PREFIX} {_numbered(example_words[:_NUM_COMMON])}\n"
        return CommonWordsDraft(self.spec, index, words, repeats, example)


@dataclass(frozen=True, slots=True)
class CommonWordsDraft:
    """One item: a solved example, then as many of `words` as fit."""

    spec: TaskSpec
    index: int
    words: tuple[str, ...]
    repeats: _Repeats
    example: str
    least: int = _NUM_COMMON + 1

    @property
    def most(self) -> int:
        """All words there are."""
        return len(self.words)

    def text(self, size: int) -> RulerText:
        """A list of `size` different words."""
        draw = random_of(self.spec, self.index, "order")
        return RulerText(
            before=self.example + _BEFORE,
            context=_numbered_list(self.words[:size], self.repeats.common, self.repeats.other, draw),
            after=_AFTER,
            answer_prefix=_PREFIX,
            answers=self.words[:_NUM_COMMON],
            metadata={"num_words": size},
        )


def _all_words() -> list[str]:
    return words_of("noun", "adjective", "verb")


def _numbered_list(
    words: list[str] | tuple[str, ...], num_common: int, num_other: int, draw: random.Random
) -> str:
    listed = [*words[:_NUM_COMMON] * num_common, *words[_NUM_COMMON:] * num_other]
    draw.shuffle(listed)
    return _numbered(listed)


def _numbered(words: list[str] | tuple[str, ...]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))
