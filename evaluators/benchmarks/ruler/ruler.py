"""RULER (Hsieh et al. 2024, arXiv:2404.06654), generated: an item depends on spec and index, not on limit.

The 13 tasks of scripts/synthetic.yaml of NVIDIA/RULER@c3f5e3b4 (Apache-2.0), with the authors' wording and numbers.
"""

from __future__ import annotations

import sys

from evaluators.benchmark import TaskInfo, TaskSpec
from evaluators.benchmarks.ruler.common_words import CommonWords
from evaluators.benchmarks.ruler.draft import Draft, RulerTask, Source, largest_size, length_of
from evaluators.benchmarks.ruler.frequent_words import FrequentWords
from evaluators.benchmarks.ruler.needles import NeedleTask
from evaluators.benchmarks.ruler.questions import QuestionTask, parse_hotpotqa, parse_squad
from evaluators.benchmarks.ruler.variables import VariableTracking
from evaluators.item import BenchmarkItem, text_digest
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer

NUM_OFFICIAL_ITEMS = 500

_TASKS: dict[str, RulerTask] = {
    "niah_single_1": NeedleTask("one number in noise", "noise"),
    "niah_single_2": NeedleTask("one number in prose", "prose"),
    "niah_single_3": NeedleTask("one uuid in prose", "prose", value_kind="uuids"),
    "niah_multikey_1": NeedleTask("one of four numbers in prose, by its key", "prose", num_keys=4),
    "niah_multikey_2": NeedleTask("one number among lines like it, by its key", "needles"),
    "niah_multikey_3": NeedleTask(
        "one uuid among lines like it, by its key", "needles", key_kind="uuids", value_kind="uuids"
    ),
    "niah_multivalue": NeedleTask("the four numbers of one key in prose", "prose", num_values=4),
    "niah_multiquery": NeedleTask("the numbers of four keys in prose", "prose", num_keys=4, num_queries=4),
    "vt": VariableTracking(),
    "cwe": CommonWords(),
    "fwe": FrequentWords(),
    "qa_1": QuestionTask("SQuAD questions among other documents", "squad.json", parse_squad),
    "qa_2": QuestionTask("HotpotQA questions among other documents", "hotpotqa.json", parse_hotpotqa),
}


@register_benchmark("ruler")
class Ruler:
    """Retrieval, tracing, counting and questions at any length, counted in tokens of the model's own tokenizer."""

    def tasks(self) -> tuple[str, ...]:
        """The official 13."""
        return tuple(_TASKS)

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and what fills its context."""
        definition = _TASKS[task]
        return TaskInfo(
            name=f"ruler/{task}",
            about=definition.about,
            metric=definition.metric,
            source=definition.source_note,
            num_items=f"{NUM_OFFICIAL_ITEMS}, drawn",
            context="any `length`",
            answer_tokens=definition.max_new_tokens,
            licence="Apache-2.0",
            separates="needles: eviction that has not seen the question; cwe, fwe: what drops many tokens evenly spread",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """`spec.limit` items (500 by default) whose input and answer fill `spec.length` tokens (4,096).

        Raises BenchmarkError for a file that cannot be read and a length without room for the question.
        """
        task = _TASKS[spec.task]
        spec.refuse_options(task.unused_options, f"remove it; where the text comes from: {task.source_note}.")
        spec.refuse_options(("split",), "RULER is generated and has no splits; remove it.")
        source = task.open(spec, tokenizer)
        size = length_of(spec) // task.tokens_per_unit
        items = []
        for index in range(min(spec.limit or NUM_OFFICIAL_ITEMS, source.num_items or sys.maxsize)):
            maker = _ItemMaker(spec, task, source, index)
            # The last item's size is the guess for this one: two or three encodings instead of a dozen.
            size = largest_size(maker.draft, maker.item, spec, tokenizer, size)
            items.append(maker.item(size))
        return items


class _ItemMaker:
    """Makes one item with any amount of filler."""

    def __init__(self, spec: TaskSpec, task: RulerTask, source: Source, index: int) -> None:
        self.draft: Draft = source.draft(index)
        self._spec, self._task, self._source, self._index = spec, task, source, index

    def item(self, size: int) -> BenchmarkItem:
        """The item with `size` units of filler; the same question and answer whatever the number."""
        spec, source, text, length = self._spec, self._source, self.draft.text(size), length_of(self._spec)
        return BenchmarkItem(
            item_id=f"ruler/{spec.task}/{length}/seed{spec.seed}/{source.label}/{self._index}",
            benchmark="ruler",
            task=f"{length}/{spec.task}",  # scores at two lengths are two results
            cluster_id=text_digest(text.context),  # drawn for this item, which is a cluster of its own
            before_context=text.before,
            context=text.context,
            after_context=text.after,
            answer_prefix=text.answer_prefix,
            answers=text.answers,
            max_new_tokens=spec.max_new_tokens or self._task.max_new_tokens,
            use_chat_template=True,
            metric=self._task.metric,
            is_generated=True,
            metadata={
                **text.metadata,
                "length_tokens": length,
                "haystack": source.label,
                "haystack_digest": source.digest,
            },
        )
