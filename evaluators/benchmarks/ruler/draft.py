"""A RULER item but for its amount of filler: whatever the amount, question, answer and draws stay the same.

`largest_size` finds the largest amount with which input and answer fit a length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.item import BenchmarkItem
from evaluators.prompting import num_prompt_tokens
from evaluators.tokenizer import Tokenizer

DEFAULT_LENGTH_TOKENS = 4096
GENERATED_UNUSED = ("data", "revision", "haystack")
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True, slots=True)
class RulerText:
    """What a draft says with a given amount of filler; the prompt is `before`, `context`, `after`.

    `metadata` goes into the item's beside its length and filler.
    """

    before: str
    context: str
    after: str
    answer_prefix: str
    answers: tuple[str, ...]
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)


class Draft(Protocol):
    """One item of a task, filled with `size` units of whatever its filler is made of."""

    @property
    def least(self) -> int:
        """The fewest units that make a sound item."""
        ...

    @property
    def most(self) -> int | None:
        """How many units there are; None when there is no end."""
        ...

    def text(self, size: int) -> RulerText:
        """The text with so many units, `least` to `most`; more units, more tokens."""
        ...


class Source(Protocol):
    """Where a task's text comes from, read once; `label` and `digest` name the filler and its exact text."""

    @property
    def label(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def num_items(self) -> int | None:
        """How many items there are; None when they are generated without end."""
        ...

    def draft(self, index: int) -> Draft:
        """Item `index`, the same whatever else is asked for."""
        ...


class RulerTask(Protocol):
    """One of the 13 official tasks. `tokens_per_unit` is a first guess for fitting, and changes no item."""

    @property
    def about(self) -> str: ...
    @property
    def source_note(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def tokens_per_unit(self) -> int: ...
    @property
    def unused_options(self) -> tuple[str, ...]:
        """Options of a TaskSpec that would change nothing, and are refused."""
        ...

    def open(self, spec: TaskSpec, tokenizer: Tokenizer) -> Source:
        """Read what the task needs; BenchmarkError for a file it cannot use, or a length it has no words for."""
        ...


def length_of(spec: TaskSpec) -> int:
    """Tokens that input and answer may fill together."""
    return spec.length or DEFAULT_LENGTH_TOKENS


def random_of(spec: TaskSpec, index: int, part: str = "") -> random.Random:
    """Draws of one item, or of one part of it."""
    # Seeded by a string, which `random` hashes by SHA-512: the same on every machine, unlike `hash`.
    return random.Random("/".join(filter(None, (spec.task, str(spec.seed), str(index), part))))


def largest_size(
    draft: Draft, make_item: Callable[[int], BenchmarkItem], spec: TaskSpec, tokenizer: Tokenizer, guess: int
) -> int:
    """The most units of the draft with which the item's input and answer fit the length.

    Raises BenchmarkError for a length without room for the fewest.
    """

    def num_tokens(size: int) -> int:
        item = make_item(size)
        return num_prompt_tokens(item, tokenizer) + item.max_new_tokens

    def fits(size: int) -> bool:
        # `most` is asked first: beyond it there is no text to count.
        return (draft.most is None or size <= draft.most) and num_tokens(size) <= length_of(spec)

    if not fits(draft.least):
        raise BenchmarkError(
            f"{spec.name}: length {length_of(spec)} has no room for haystack; with "
            f"{make_item(draft.least).max_new_tokens} answer tokens give more than {num_tokens(draft.least)}, "
            "or a smaller max_new_tokens."
        )
    return largest_that_fits(fits, max(guess, draft.least), draft.least)


def largest_that_fits(fits: Callable[[int], bool], guess: int, least: int = 0) -> int:
    """The largest n with fits(n), given fits(least) and that no larger n fits once one does not.

    Steps double from the guess, so a guess that is off by d costs about 2 log2(d) + 2 calls.
    """
    low, high, step = guess, guess + 1, 1
    while fits(high):
        low, high, step = high, high + 2 * step, 2 * step
    while not fits(low):
        low, high, step = max(low - 2 * step, least), low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
