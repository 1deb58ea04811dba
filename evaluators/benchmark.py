"""What a sweep asks for (`TaskSpec`) and who answers it (`Benchmark`); no option is silently ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from evaluators.item import BenchmarkItem
from evaluators.tokenizer import Tokenizer

DEFAULT_SEED = 42  # RULER's official seed


class BenchmarkError(ValueError):
    """A task, its options or its data cannot be used; the message names the value and the remedy."""


class UnknownNameError(BenchmarkError):
    """No benchmark, task or metric has this name."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task of a sweep, as the user wrote it.

    `name` is "<benchmark>/<task>". `data` is a local folder or file, `revision` a commit of the hub (neither: the
    pinned one). `limit` keeps the first items. `split` is a part of a published set that has several. `length`
    (tokens), `seed` and `haystack` (a file) shape generated tasks. `max_new_tokens` replaces the task's official length
    of answer.
    Raises BenchmarkError for an impossible value.
    """

    name: str
    data: str | None = None
    revision: str | None = None
    limit: int | None = None
    length: int | None = None
    seed: int = DEFAULT_SEED
    haystack: str | None = None
    max_new_tokens: int | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        # One slash, with text on either side of it.
        if [bool(part) for part in self.name.split("/")] != [True, True]:
            raise BenchmarkError(f"task name {self.name!r} is not of the form 'longbench/qasper'.")
        for option in ("limit", "length", "max_new_tokens"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise BenchmarkError(
                    f"{self.name}: {option} is {value}; give at least 1, or leave it out for the default."
                )

    @property
    def benchmark(self) -> str:
        """The part of the name before the slash."""
        return self.name.split("/")[0]

    @property
    def task(self) -> str:
        """The part of the name after the slash."""
        return self.name.split("/")[1]

    def refuse_options(self, options: Sequence[str], reason: str) -> None:
        """Raise BenchmarkError when one of `options` is set although it would have no effect."""
        # `seed` cannot be refused: it is never None, and whether the user or the default set it is not known.
        for option in options:
            value = getattr(self, option)
            if value is not None:
                raise BenchmarkError(f"{self.name}: {option}={value!r} has no effect here: {reason}")


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What a user wants to know before choosing a task: what it asks, its metric, and where its text comes from.

    `num_items` and `context` (its length) are in words, since some are the user's own; `answer_tokens`: at most so many, 0
    where the user says. `licence` is the data's; `separates` says which policies a task tells apart.
    """

    name: str
    about: str
    metric: str
    source: str
    num_items: str
    context: str
    answer_tokens: int
    licence: str
    separates: str


class Benchmark(Protocol):
    """A family of tasks with one source and one prompt style; instances hold no state."""

    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, without the benchmark's name."""
        ...

    def describe(self, task: str) -> TaskInfo:
        """What there is to know about one of `tasks()`, without reading any data."""
        ...

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` items of a known task; neither limit nor machine changes their order.

        Item ids are unique in the list. The tokenizer is for benchmarks that fit their text to a length, or word it
        otherwise for chat models.
        Raises BenchmarkError for anything a user can cause.
        """
        ...
