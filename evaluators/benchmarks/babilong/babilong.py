"""BABILong (Kuratov et al. 2024, arXiv:2406.10149), qa1 to qa5: one to three facts of bAbI spread over a book.

The authors' few-shot prompt, whose examples stand before the context. Their leaderboard takes the best prompt of several for
each task; here it is always this one.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from dataclasses import dataclass, replace
from typing import Any

from evaluators.benchmark import BenchmarkError, TaskInfo, TaskSpec
from evaluators.benchmarks.sources.addresses import check_commit
from evaluators.benchmarks.sources.json_rows import JsonRow, check_size, text_field
from evaluators.benchmarks.sources.rows import HubRows, read_rows
from evaluators.hints import nearest_name_hint
from evaluators.item import BenchmarkItem, text_digest
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer

REPOSITORY = "RMT-team/babilong"
REVISION = "ee0d588794c7ac098062ee0d247c733d62e94fe2"
LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M")
DEFAULT_LENGTH = "4k"
MAX_NEW_TOKENS = 20


@dataclass(frozen=True, slots=True)
class BabilongTask:
    """A task: its prompt's parts, and the labels among which answers are."""

    about: str
    instruction: str
    examples: str
    post_prompt: str
    labels: tuple[str, ...]

    @property
    def before(self) -> str:
        """The text before the context."""
        return f"{self.instruction}\n\n{self.examples}\n\n{self.post_prompt}\n\n<context>\n"


@functools.cache
def babilong_tasks() -> dict[str, BabilongTask]:
    """Every task by its name."""
    file = importlib.resources.files(__package__) / "templates.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["tasks"]
    return {name: BabilongTask(**{**it, "labels": tuple(it["labels"])}) for name, it in found.items()}


@register_benchmark("babilong")
class Babilong:
    """Facts in books: what needs one of them and what needs three, at lengths from none to a million tokens."""

    def tasks(self) -> tuple[str, ...]:
        """Those of the leaderboard."""
        return tuple(babilong_tasks())

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and where its rows lie."""
        source = (
            f"{REPOSITORY}@{REVISION[:8]} on the hub, or `data`: a folder with <task>_{DEFAULT_LENGTH}.jsonl; "
            f"`split`: a length, {LENGTHS[0]} to {LENGTHS[-1]} ({DEFAULT_LENGTH})"
        )
        return TaskInfo(
            name=f"babilong/{task}",
            about=babilong_tasks()[task].about,
            metric="only_label",
            source=source,
            num_items="100 a length",
            context="0k to 1M tokens",
            answer_tokens=MAX_NEW_TOKENS,
            licence="Apache-2.0; bAbI: BSD",
            separates="several facts: policies that keep one needle from those that keep the chain",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` rows of the length `spec.split`; their task is "<length>/<task>".

        Raises BenchmarkError for a length there is not, a source that cannot be read and an unusable row.
        """
        spec.refuse_options(
            ("length", "haystack"), "the lengths are given: name one in `split`, as split: 8k."
        )
        length = spec.split or DEFAULT_LENGTH
        if length not in LENGTHS:
            raise BenchmarkError(
                f"{spec.name}: there is no length {length!r}. {nearest_name_hint(length, LENGTHS)}"
            )
        names = (
            f"{spec.task}_{length}.jsonl",
            f"{spec.task}_{length}.jsonl.gz",
            f"{spec.task}_{length}.json",
        )
        published = HubRows(REPOSITORY, REVISION, "", config=length, local_names=names)
        if spec.data is None:
            revision = spec.revision or REVISION
            check_commit(revision, spec.name)
            # The card says where a length's rows of a task are.
            spec = replace(spec, data=f"hf://datasets/{REPOSITORY}@{revision}/{length}", revision=None)
        items: list[BenchmarkItem] = []
        for where, row in read_rows(spec, published, "input, question and target", split=spec.task):
            if spec.limit is not None and len(items) == spec.limit:
                break
            items.append(_item(spec, row, where, length, len(items)))
        if not items:
            raise BenchmarkError(f"{spec.name}: {spec.data} has no rows.")
        return items


def _item(spec: TaskSpec, row: JsonRow, where: str, length: str, index: int) -> BenchmarkItem:
    task = babilong_tasks()[spec.task]
    context = text_field(row, "input", where, is_required=True).strip()
    question = text_field(row, "question", where, is_required=True)
    target = text_field(row, "target", where, is_required=True)
    check_size(question, f"{where}: question")
    # What the question names is never what is asked for, and does not count in the answer.
    classes = tuple(label for label in task.labels if label.lower() not in question.lower())
    if target.lower() not in map(str.lower, classes):
        raise BenchmarkError(f"{where}: target is {target!r:.40}, which is none of {', '.join(classes)}.")
    return BenchmarkItem(
        item_id=f"{spec.name}/{length}/{index}",
        benchmark=spec.benchmark,
        task=f"{length}/{spec.task}",
        cluster_id=text_digest(context),
        before_context=task.before,
        context=context,
        # The authors strip the whole prompt.
        after_context=f"\n</context>\n\nQuestion: {question}".rstrip(),
        answer_prefix="",
        answers=(target,),
        max_new_tokens=spec.max_new_tokens or MAX_NEW_TOKENS,
        use_chat_template=True,
        metric="only_label",
        all_classes=classes,
    )
