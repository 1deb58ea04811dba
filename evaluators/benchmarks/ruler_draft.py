"""A RULER item but for its amount of filler: whatever the amount, question, answer and draws stay the same."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from evaluators.benchmark import TaskSpec
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
    """Draws of one item, and of one part of it: seeded by text, so alike on every machine."""
    return random.Random("/".join(filter(None, (spec.task, str(spec.seed), str(index), part))))
