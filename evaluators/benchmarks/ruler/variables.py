"""RULER's variable tracking: five names for one value, each assigned from the one before, scattered in noise.

Follows variable_tracking.py of NVIDIA/RULER@c3f5e3b4 (Apache-2.0): one chain of four hops, after one solved example
whose noise fits 500 tokens and whose three-letter names every item draws anew.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from evaluators.benchmark import TaskSpec
from evaluators.benchmarks.ruler.draft import GENERATED_UNUSED, NOISE, RulerText, random_of
from evaluators.item import text_digest
from evaluators.tokenizer import Tokenizer, encode

_BEFORE = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
_AFTER = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
# "assgined" is the authors' spelling, and part of the task.
_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, "
    "{num} variables are assgined the value {value}, they are: "
)
_NUM_NAMES = 5  # four hops
_NAME_LETTERS, _EXAMPLE_LETTERS = 5, 3
_MIN_VALUE, _MAX_VALUE = 10_000, 99_998  # numpy's randint(10000, 99999) leaves its upper end out
_EXAMPLE_TOKENS, _EXAMPLE_STEP = 500, 5


@dataclass(frozen=True, slots=True)
class _Chain:
    """Names in order of assignment, all of one value."""

    names: tuple[str, ...]
    value: int

    def hidden_in(self, num_noises: int, places: random.Random) -> str:
        """The assignments in order, at different places among lines of noise."""
        lines = [f"{NOISE}\n"] * num_noises
        sentences = [f"VAR {self.names[0]} = {self.value}"]
        # Each hop ends in a blank, which the joining doubles, as upstream.
        sentences += [
            f"VAR {name} = VAR {other} " for other, name in zip(self.names, self.names[1:], strict=False)
        ]
        for offset, place in enumerate(sorted(places.sample(range(num_noises), len(sentences)))):
            lines.insert(place + offset, sentences[offset])
        return " ".join(lines)

    @property
    def question(self) -> str:
        return _AFTER.format(value=self.value)

    @property
    def prefix(self) -> str:
        return _PREFIX.format(num=len(self.names), value=self.value)


@dataclass(frozen=True, slots=True)
class VariableTracking:
    """The task with its official numbers."""

    about: str = "all variables that a chain of assignments gives one value, in noise"
    source_note: str = "generated"
    metric: str = "string_match_all"
    max_new_tokens: int = 30
    tokens_per_unit: int = 25
    unused_options: tuple[str, ...] = GENERATED_UNUSED

    def open(self, spec: TaskSpec, tokenizer: Tokenizer) -> VariableTrackingSource:
        """Fit the solved example."""
        return VariableTrackingSource(spec, _fit_example(spec, tokenizer, self.max_new_tokens))


@dataclass(frozen=True, slots=True)
class VariableTrackingSource:
    """Items without end; `num_example_noises` is how long the solved example is."""

    spec: TaskSpec
    num_example_noises: int
    label: str = "noise"
    digest: str = text_digest(NOISE)
    num_items: None = None

    def draft(self, index: int) -> VariableTrackingDraft:
        """The item's chain and its example."""
        draw = random_of(self.spec, index)
        chain = _Chain(_draw_names(draw, _NAME_LETTERS), draw.randint(_MIN_VALUE, _MAX_VALUE))
        example = _example(self.spec, self.num_example_noises, _draw_names(draw, _EXAMPLE_LETTERS))
        return VariableTrackingDraft(self.spec, index, chain, example)


@dataclass(frozen=True, slots=True)
class VariableTrackingDraft:
    """One item: a solved example, then a chain in noise."""

    spec: TaskSpec
    index: int
    chain: _Chain
    example: str
    least: int = _NUM_NAMES + 1  # with fewer lines the authors would cut the noise into pieces
    most: None = None

    def text(self, size: int) -> RulerText:
        """The chain in `size` lines of noise."""
        return RulerText(
            before=f"{self.example}\n\n{_BEFORE}",
            context=self.chain.hidden_in(size, random_of(self.spec, self.index, "places")),
            after=self.chain.question,
            answer_prefix=self.chain.prefix,
            answers=self.chain.names,
            metadata={"num_sentences": size},
        )


def _example(spec: TaskSpec, num_noises: int, names: tuple[str, ...]) -> str:
    """The solved example; all items have its value and places, each has names of its own."""
    draw = random.Random(f"{spec.task}/{spec.seed}/example")
    chain = _Chain(names, draw.randint(_MIN_VALUE, _MAX_VALUE))
    solved = _BEFORE + chain.hidden_in(num_noises, draw) + chain.question + chain.prefix
    return f"{solved} {' '.join(names)}\n\n"


def _fit_example(spec: TaskSpec, tokenizer: Tokenizer, max_new_tokens: int) -> int:
    """Lines of noise, a multiple of five, with which the example and an answer stay within 500 tokens."""
    # Any names do: each item draws its own, and all share the number of lines found here.
    names = _draw_names(random.Random(f"{spec.task}/{spec.seed}/example names"), _EXAMPLE_LETTERS)
    num_noises = 2 * _EXAMPLE_STEP
    while True:
        text = _example(spec, num_noises + _EXAMPLE_STEP, names)
        if len(encode(text, tokenizer).ids) + max_new_tokens > _EXAMPLE_TOKENS:
            return num_noises
        num_noises += _EXAMPLE_STEP


def _draw_names(draw: random.Random, num_letters: int) -> tuple[str, ...]:
    names: dict[str, None] = {}
    while len(names) < _NUM_NAMES:
        names["".join(draw.choices(string.ascii_uppercase, k=num_letters))] = None
    return tuple(names)
