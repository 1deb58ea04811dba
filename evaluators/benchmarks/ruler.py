"""RULER (Hsieh et al. 2024, arXiv:2404.06654), generated: an item depends on spec and index, not on limit.

Wording, needle, depths and lengths follow scripts/data/synthetic of NVIDIA/RULER@c3f5e3b4 (Apache-2.0).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.haystack import Haystack, load_haystack
from evaluators.item import BenchmarkItem, text_digest
from evaluators.prompting import num_prompt_tokens
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer

DEFAULT_LENGTH_TOKENS = 4096
NUM_OFFICIAL_ITEMS = 500
OFFICIAL_MAX_NEW_TOKENS = 128

_TASK = "niah_single_2"
_BEFORE = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n"
)
_NEEDLE = "One of the special magic numbers for {key} is: {value}."
_AFTER = "\nWhat is the special magic number for {key} mentioned in the provided text?"
# The prefix owns the blank, as upstream: without a chat template it then starts at a token of its own.
_ANSWER_PREFIX = " The special magic number for {key} mentioned in the provided text is"
_NUM_DEPTHS = 40
_MIN_VALUE, _MAX_VALUE = 1_000_000, 9_999_999  # seven digits
_TYPICAL_TOKENS_PER_SENTENCE = 25  # a first guess only


@register_benchmark("ruler")
class Ruler:
    """A number hidden in prose, asked for by a name made of an adjective and a noun."""

    def tasks(self) -> tuple[str, ...]:
        """The tasks of the official list of 13 that are supported."""
        return (_TASK,)

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """`spec.limit` items (500 by default) whose input and answer fill `spec.length` tokens (4,096).

        Raises BenchmarkError for a haystack that cannot be read and a length without room for the question.
        """
        spec.refuse_options(
            ("data", "revision"), "RULER is generated; name a text file in `haystack` instead."
        )
        haystack = load_haystack(spec.haystack)
        num_sentences = (spec.length or DEFAULT_LENGTH_TOKENS) // _TYPICAL_TOKENS_PER_SENTENCE
        items = []
        for index in range(spec.limit or NUM_OFFICIAL_ITEMS):
            draft = _Draft(spec, haystack, index)
            num_sentences = _fill(draft, tokenizer, num_sentences)
            items.append(draft.item(num_sentences))
        return items


@dataclass(frozen=True, slots=True)
class _Draft:
    """An item but for the number of its sentences."""

    spec: TaskSpec
    haystack: Haystack
    index: int

    @property
    def length_tokens(self) -> int:
        return self.spec.length or DEFAULT_LENGTH_TOKENS

    def item(self, num_sentences: int) -> BenchmarkItem:
        """The item with so much haystack; the same key, value and depth whatever the number."""
        draw = random.Random(
            f"{_TASK}/{self.spec.seed}/{self.index}"
        )  # seeded by text: alike on every machine
        key = f"{draw.choice(_words('adjective'))}-{draw.choice(_words('noun'))}"
        value = str(draw.randint(_MIN_VALUE, _MAX_VALUE))
        depth_percent = _depth_percent(self.spec.seed, self.index)
        sentences = self.haystack.take(num_sentences)
        sentences.insert(num_sentences * depth_percent // 100, _NEEDLE.format(key=key, value=value))
        context = " ".join(sentences)
        return BenchmarkItem(
            item_id=f"ruler/{_TASK}/{self.length_tokens}/seed{self.spec.seed}/{self.haystack.label}/{self.index}",
            benchmark="ruler",
            task=f"{self.length_tokens}/{_TASK}",  # scores at two lengths are two results
            cluster_id=text_digest(context),
            before_context=_BEFORE,
            context=context,
            after_context=_AFTER.format(key=key),
            answer_prefix=_ANSWER_PREFIX.format(key=key),
            answers=(value,),
            max_new_tokens=self.spec.max_new_tokens or OFFICIAL_MAX_NEW_TOKENS,
            use_chat_template=True,
            metric="string_match_all",
            metadata={
                "depth_percent": depth_percent,
                "length_tokens": self.length_tokens,
                "num_sentences": num_sentences,
                "haystack": self.haystack.label,
                "haystack_digest": self.haystack.digest,
            },
        )


def _fill(draft: _Draft, tokenizer: Tokenizer, guess: int) -> int:
    """The most sentences with which input and answer fit the length."""

    def fits(num_sentences: int) -> bool:
        item = draft.item(num_sentences)
        return num_prompt_tokens(item, tokenizer) + item.max_new_tokens <= draft.length_tokens

    if not fits(0):
        item = draft.item(0)
        raise BenchmarkError(
            f"{draft.spec.name}: length {draft.length_tokens} has no room for haystack; with "
            f"{item.max_new_tokens} answer tokens give more than "
            f"{num_prompt_tokens(item, tokenizer) + item.max_new_tokens}, or a smaller max_new_tokens."
        )
    return _largest_that_fits(fits, guess)


def _largest_that_fits(fits: Callable[[int], bool], guess: int) -> int:
    """The largest n with fits(n), given fits(0) and that no larger n fits once one does not.

    Steps double from the guess, so a guess that is off by d costs about 2 log2(d) + 2 calls.
    """
    low, high, step = guess, guess + 1, 1
    while fits(high):
        low, high, step = high, high + 2 * step, 2 * step
    while not fits(low):
        low, high, step = max(low - 2 * step, 0), low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _depth_percent(seed: int, index: int) -> int:
    """Depth of item `index`: each run of 40 items visits every depth once, in an order the seed shuffles."""
    depths = np.linspace(0, 100, num=_NUM_DEPTHS).round().astype(int).tolist()
    block, place = divmod(index, _NUM_DEPTHS)
    random.Random(f"depths/{seed}/{block}").shuffle(depths)
    return int(depths[place])


@functools.cache
def _words(category: str) -> list[str]:
    from wonderwords import RandomWord

    return sorted(set(RandomWord().filter(include_categories=[category])))
