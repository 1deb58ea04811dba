"""Contexts of our own drawing for four of SCBench's tasks, at any length: the authors' prompts and measures, not their rows.

Of these four the authors drew the contexts too. A row depends on task, length, seed and its number, and on nothing else.
"""

from __future__ import annotations

import itertools
import json
import random
import string
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.ruler.draft import largest_that_fits, random_of
from evaluators.benchmarks.scbench.rows import ScbenchRow, Turn
from evaluators.benchmarks.scbench.tasks import ScbenchTask
from evaluators.item import BenchmarkItem, text_digest
from evaluators.prompting import num_prompt_tokens
from evaluators.tokenizer import Tokenizer, plain_ids

KeyT = TypeVar("KeyT")

DEFAULT_LENGTH_TOKENS = 8192
NUM_CONTEXTS = 100
NUM_TURNS = 5
_LEAST_ENTRIES = 12
_HOPS, _CHAINS = 4, 6
_AFFIX, _WORD_CHARS = 6, 28


def generated_rows(spec: TaskSpec, task: ScbenchTask, tokenizer: Tokenizer) -> Iterator[ScbenchRow]:
    """Rows whose context, longest question and answer fill `spec.length` tokens, without end but for `NUM_CONTEXTS`.

    Raises BenchmarkError for a length without room for the fewest entries.
    """
    draw = GENERATED[spec.task.removesuffix("_drawn")]
    length = spec.length or DEFAULT_LENGTH_TOKENS
    size = max(_LEAST_ENTRIES, length // 40)
    for index in range(NUM_CONTEXTS):

        def row_of(num_entries: int, index: int = index) -> ScbenchRow:
            return draw(random_of(spec, index), num_entries)

        def fits(num_entries: int, index: int = index) -> bool:
            return _num_tokens(row_of(num_entries, index), task, spec, tokenizer) <= length

        if not fits(_LEAST_ENTRIES):
            needed = _num_tokens(row_of(_LEAST_ENTRIES), task, spec, tokenizer)
            raise BenchmarkError(f"{spec.name}: length {length} has no room; give at least {needed}.")
        # The last row's size is the guess for this one.
        size = largest_that_fits(fits, max(size, _LEAST_ENTRIES), _LEAST_ENTRIES)
        yield replace(row_of(size), metadata={"length_tokens": length, "entries": size})


def _num_tokens(row: ScbenchRow, task: ScbenchTask, spec: TaskSpec, tokenizer: Tokenizer) -> int:
    before, context = task.context_parts(row)
    # By tokens: of two texts the shorter one may take more of them.
    questions = (f"\n\n{task.question(turn)}" for turn in row.turns)
    longest = max(questions, key=lambda text: len(plain_ids(text, tokenizer)))
    item = BenchmarkItem(
        "", "", "", text_digest(""), before, context, longest, "", ("",),
        spec.max_new_tokens or task.max_new_tokens, use_chat_template=True, metric=task.metric, is_generated=True,
    )  # fmt: skip
    return num_prompt_tokens(item, tokenizer) + item.max_new_tokens


def _key_values(draw: random.Random, num_entries: int) -> ScbenchRow:
    """A JSON object of uuids; every fifth of it is asked for once."""
    pairs = {_uuid(draw): _uuid(draw) for _ in range(num_entries)}
    asked = _spread(draw, list(pairs))
    turns = (
        Turn(f'Key: "{key}"\nThe value associated with the specified key is: ', (pairs[key],))
        for key in asked
    )
    return ScbenchRow(f"JSON data:\n{json.dumps(pairs)}", tuple(turns))


def _affixes(draw: random.Random, num_entries: int) -> ScbenchRow:
    """Lines of random letters, no two of which begin or end alike."""
    words: dict[tuple[str, str], str] = {}
    while len(words) < num_entries:
        word = "".join(draw.choices(string.ascii_lowercase + string.digits, k=_WORD_CHARS))
        words.setdefault((word[:_AFFIX], word[-_AFFIX:]), word)
    asked = _spread(draw, list(words))
    turns = (
        Turn(
            f'Which string of the list begins with "{begin}" and ends with "{end}"? The string is: ',
            (words[begin, end],),
        )
        for begin, end in asked
    )
    return ScbenchRow("Below is a list of strings.\n\n" + "\n".join(words.values()), tuple(turns))


def _variables(draw: random.Random, num_entries: int) -> ScbenchRow:
    """Chains of assignments, spread over a text of assignments that nobody asks for."""
    names = _names(draw)
    chains = [[next(names) for _ in range(_HOPS + 1)] for _ in range(_CHAINS)]
    values = draw.sample(range(10_000, 100_000), _CHAINS)
    lines = [f"VAR {next(names)} = {draw.randrange(1000, 10_000)}" for _ in range(num_entries)]
    for chain, value in zip(chains, values, strict=True):
        steps = [f"VAR {chain[0]} = {value}"]
        steps += [f"VAR {after} = VAR {before}" for before, after in itertools.pairwise(chain)]
        places = sorted(draw.sample(range(len(lines) + 1), len(steps)))
        for shift, (place, step) in enumerate(zip(places, steps, strict=True)):
            lines.insert(place + shift, step)
    turns = (
        Turn(f"Question: Find all variables that are assigned the value {value} in the text above. Answer: "
             f"According to the chain(s) of variable assignment in the text above, {_HOPS + 1} variables are assigned the "
             f"value {value}, they are: ", tuple(chain))
        for chain, value in list(zip(chains, values, strict=True))[:NUM_TURNS]
    )  # fmt: skip
    before = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    return ScbenchRow(before + "\n".join(lines), tuple(turns))


def _numbers(draw: random.Random, num_entries: int) -> ScbenchRow:
    """A list of different whole numbers, asked for its ends, its middle and what stands next to the ends."""
    numbers = draw.sample(range(1, 100 * num_entries), num_entries)
    ordered = sorted(numbers)
    targets = {
        "largest number": ordered[-1],
        "smallest number": ordered[0],
        "second largest number": ordered[-2],
        "second smallest number": ordered[1],
        "third largest number": ordered[-3],
    }
    turns = (
        Turn(
            f"You should answer with only one number, no other words. The {name} of the list is: ",
            (str(value),),
        )
        for name, value in targets.items()
    )
    return ScbenchRow(str(numbers), tuple(turns))


def _spread(draw: random.Random, keys: list[KeyT]) -> list[KeyT]:
    """One key of each fifth, in drawn order: no place of the context is asked for more often than another."""
    step = len(keys) / NUM_TURNS
    asked = [keys[int(step * part + draw.random() * step)] for part in range(NUM_TURNS)]
    return draw.sample(asked, NUM_TURNS)


def _uuid(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))


def _names(draw: random.Random) -> Iterator[str]:
    seen: set[str] = set()
    while True:
        name = "".join(draw.choices(string.ascii_uppercase, k=5))
        if name not in seen:
            seen.add(name)
            yield name


GENERATED: dict[str, Callable[[random.Random, int], ScbenchRow]] = {
    "kv": _key_values,
    "prefix_suffix": _affixes,
    "vt": _variables,
    "mf": _numbers,
}
"""Draws a row with so many entries; the same draws whatever the number are not promised."""
