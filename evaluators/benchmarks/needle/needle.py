"""A needle in a haystack (Kamradt 2023): the sentence about San Francisco at eleven depths of a context of any length.

The picture that every paper on caches shows. With one haystack a cell it is an illustration; every further eleven items put
the needle into another stretch of the text, which gives a cell an interval. The needle stands between two sentences.
"""

from __future__ import annotations

import itertools
import random

from evaluators.benchmark import BenchmarkError, TaskInfo, TaskSpec
from evaluators.benchmarks.ruler.draft import largest_that_fits
from evaluators.benchmarks.ruler.filler import Haystack, load_haystack
from evaluators.item import BenchmarkItem, text_digest
from evaluators.prompting import num_prompt_tokens
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer

NEEDLE = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
PHRASES = ("eat a sandwich", "Dolores Park")
"""What an answer must hold: one of them is half of it."""
DEPTHS_PERCENT = tuple(range(0, 101, 10))
DEFAULT_LENGTH_TOKENS = 4096
MAX_NEW_TOKENS = 32
# The wrapping is kvpress's, question and cue are KVzip's.
_BEFORE = "This is a very long story book: <book> "
_AFTER = " </book>.\n\nWhat is the best thing to do in San Francisco?"
_CUE = " Based on the content of the book, the best thing to do in San Francisco is"
_TOKENS_PER_SENTENCE = 30


@register_benchmark("needle")
class NeedleGrid:
    """One known sentence, asked for; a task's several lengths make the grid's columns."""

    def tasks(self) -> tuple[str, ...]:
        """The only task."""
        return ("grid",)

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and what fills its contexts."""
        return TaskInfo(
            name=f"needle/{task}",
            about="one sentence at eleven depths of prose",
            metric="string_match_all",
            source="generated; prose of pydoc's topics, or `haystack`: a .txt or .json file",
            num_items=f"{len(DEPTHS_PERCENT)} a haystack",
            context="any `length`",
            answer_tokens=MAX_NEW_TOKENS,
            licence="the text's",
            separates="at which depth a policy loses what it was not asked for yet",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """`spec.limit` items (11) of `spec.length` tokens (4,096): depths in order, then those of the next haystack.

        Raises BenchmarkError for a file that cannot be read and a length without room for the question.
        """
        spec.refuse_options(("data", "revision", "split"), "the contexts are generated; remove it.")
        haystack, length = load_haystack(spec.haystack), spec.length or DEFAULT_LENGTH_TOKENS
        size, items = length // _TOKENS_PER_SENTENCE, []
        for index in range(spec.limit or len(DEPTHS_PERCENT)):
            number, place = divmod(index, len(DEPTHS_PERCENT))
            sentences = _stretch(haystack, spec.seed, number)

            def made(
                count: int, place: int = place, number: int = number, text: tuple[str, ...] = sentences
            ) -> BenchmarkItem:
                return _item(spec, haystack, length, number, DEPTHS_PERCENT[place], text, count)

            def fits(count: int) -> bool:
                item = made(count)
                return num_prompt_tokens(item, tokenizer) + item.max_new_tokens <= length

            if not fits(1):
                least = num_prompt_tokens(made(1), tokenizer) + made(1).max_new_tokens
                raise BenchmarkError(f"{spec.name}: length {length} has no room; give at least {least}.")
            size = largest_that_fits(fits, max(size, 1), 1)
            items.append(made(size))
        return items


def _stretch(haystack: Haystack, seed: int, number: int) -> tuple[str, ...]:
    """The sentences from a drawn one on; of the first haystack from the text's beginning."""
    start = 0 if number == 0 else random.Random(f"needle/{seed}/{number}").randrange(len(haystack.sentences))
    return haystack.sentences[start:] + haystack.sentences[:start]


def _boundary(sentences: list[str], depth_percent: int) -> int:
    """How many sentences to put before the needle: those that end nearest to a depth, in characters."""
    ends = [0, *itertools.accumulate(map(len, sentences))]
    return min(range(len(ends)), key=lambda index: abs(100 * ends[index] - depth_percent * ends[-1]))


def _item(
    spec: TaskSpec,
    haystack: Haystack,
    length: int,
    number: int,
    depth: int,
    sentences: tuple[str, ...],
    count: int,
) -> BenchmarkItem:
    text = list(itertools.islice(itertools.cycle(sentences), count))
    text.insert(_boundary(text, depth), NEEDLE)
    context = " ".join(text)
    return BenchmarkItem(
        item_id=f"needle/grid/{length}/seed{spec.seed}/{haystack.label}/{number}/{depth}",
        benchmark="needle",
        task=f"{length}/grid",
        cluster_id=text_digest(context),
        before_context=_BEFORE,
        context=context,
        after_context=_AFTER,
        answer_prefix=_CUE,
        answers=PHRASES,
        max_new_tokens=spec.max_new_tokens or MAX_NEW_TOKENS,
        use_chat_template=True,
        metric="string_match_all",
        is_generated=True,
        metadata={
            "depth_percent": depth,
            "length_tokens": length,
            "haystack": haystack.label,
            "haystack_digest": haystack.digest,
        },
    )
