"""RULER's frequent words: coded words whose frequencies fall as 1 / rank², the first rank being dots.

Follows freq_words_extraction.py of NVIDIA/RULER@c3f5e3b4 (Apache-2.0), whose length leaves the answer out; here, as
in all tasks, input and answer fit the length together.
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.ruler.draft import GENERATED_UNUSED, RulerText, length_of, random_of
from evaluators.item import text_digest
from evaluators.tokenizer import Tokenizer

_BEFORE = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. "
)
_AFTER = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
_NUM_ASKED = 3
_DOTS = "..."  # three, though the authors' question says four
_WORD_LETTERS = 6
_TOKENS_PER_VOCABULARY_WORD = 50
_ZETA_2 = math.pi**2 / 6  # the official alpha is 2.0
_MIN_WORDS = 100  # with fewer, the third and the fourth word can be equally frequent


@dataclass(frozen=True, slots=True)
class FrequentWords:
    """The task with its official numbers."""

    about: str = "the three most frequent words of a coded text"
    source_note: str = "generated"
    metric: str = "string_match_all"
    max_new_tokens: int = 50
    tokens_per_unit: int = 4
    unused_options: tuple[str, ...] = GENERATED_UNUSED

    def open(self, spec: TaskSpec, tokenizer: Tokenizer) -> FrequentWordsSource:
        """Check that the length has words enough."""
        num_words = length_of(spec) // _TOKENS_PER_VOCABULARY_WORD
        least = _NUM_ASKED + 2  # the dots, and a word that is not asked for
        if num_words < least:
            raise BenchmarkError(
                f"{spec.name}: length {length_of(spec)} has no room for haystack; "
                f"give at least {least * _TOKENS_PER_VOCABULARY_WORD}."
            )
        return FrequentWordsSource(spec, num_words)


@dataclass(frozen=True, slots=True)
class FrequentWordsSource:
    """Items without end, each with `num_words` coded words of its own."""

    spec: TaskSpec
    num_words: int
    label: str = "coded"
    digest: str = text_digest(string.ascii_lowercase)
    num_items: None = None

    def draft(self, index: int) -> FrequentWordsDraft:
        """The item's words by falling frequency."""
        draw = random_of(self.spec, index)
        words: dict[str, None] = {_DOTS: None}  # not a set: the order is the rank
        while len(words) < self.num_words:
            words["".join(draw.choices(string.ascii_lowercase, k=_WORD_LETTERS))] = None
        return FrequentWordsDraft(self.spec, index, tuple(words))


@dataclass(frozen=True, slots=True)
class FrequentWordsDraft:
    """One item: a shuffled text of `words`."""

    spec: TaskSpec
    index: int
    words: tuple[str, ...]
    least: int = _MIN_WORDS
    most: None = None

    def text(self, size: int) -> RulerText:
        """A text of about `size` words: what the rounding down of frequencies leaves."""
        listed: list[str] = []
        for rank, word in enumerate(self.words, start=1):
            listed += [word] * int(size / rank**2 / _ZETA_2)
        random_of(self.spec, self.index, "order").shuffle(listed)
        return RulerText(
            before=_BEFORE,
            context=" ".join(listed),
            after=_AFTER,
            answer_prefix=_PREFIX,
            answers=self.words[1 : _NUM_ASKED + 1],
            metadata={"num_words": len(listed)},
        )
