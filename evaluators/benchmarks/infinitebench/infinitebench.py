"""InfiniteBench (Zhang et al. 2024, arXiv:2402.13718): eleven of its tasks, worded and scored as for open models.

kvpress's and lm-eval's tasks of these names ask and score otherwise: their numbers are not comparable with the authors'.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from dataclasses import dataclass
from typing import Any

from evaluators.benchmark import BenchmarkError, TaskInfo, TaskSpec
from evaluators.benchmarks.sources.json_rows import JsonRow, check_size, text_field
from evaluators.benchmarks.sources.rows import HubRows, read_rows
from evaluators.item import BenchmarkItem, text_digest
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer

REPOSITORY = "xinrongzhang2022/InfiniteBench"
REVISION = "90f0394333616266d9fe85824ceaf505093cbaa5"
_LETTERS = "ABCD"
_TARGET = re.compile(r"The .+ of")
_CALL = re.compile(r"(func_[0-9]+)\(-?[0-9]+\)")
_OPTIONS = ("longbook_choice_eng", "code_debug")


@dataclass(frozen=True, slots=True)
class InfiniteBenchTask:
    """A task; its prompt is `before`, the row's context, `after`."""

    about: str
    before: str
    after: str
    metric: str
    max_new_tokens: int
    num_items: int


@functools.cache
def infinitebench_tasks() -> dict[str, InfiniteBenchTask]:
    """Every task by its official name."""
    file = importlib.resources.files(__package__) / "templates.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["tasks"]
    return {name: _definition(**it) for name, it in found.items()}


def _definition(*, prompt: str, **fields: Any) -> InfiniteBenchTask:
    before, after = prompt.split("{context}")
    return InfiniteBenchTask(before=before, after=after, **fields)


@register_benchmark("infinitebench")
class InfiniteBench:
    """Retrieval, novels, scripts, numbers and code of 44 thousand to two million tokens."""

    def tasks(self) -> tuple[str, ...]:
        """The official list without math_calc."""
        return tuple(infinitebench_tasks())

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and where its rows lie."""
        it = infinitebench_tasks()[task]
        source = f"{_published(task).place}, or `data`: a folder with <task>.jsonl"
        return TaskInfo(
            name=f"infinitebench/{task}",
            about=it.about,
            metric=it.metric,
            source=source,
            num_items=f"{it.num_items}",
            context="44k to 2M tokens",
            answer_tokens=it.max_new_tokens,
            licence="MIT code; the data state none",
            separates="sink and window from the rest; kv_retrieval: heavy eviction",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` rows of the official file.

        Raises BenchmarkError for a source that cannot be read and, with file and line, for an unusable row.
        """
        spec.refuse_options(("length", "haystack", "split"), "the texts are given; remove it.")
        items: list[BenchmarkItem] = []
        for where, row in read_rows(spec, _published(spec.task), "context, input and answer"):
            if spec.limit is not None and len(items) == spec.limit:
                break
            items.append(_item(spec, row, where, len(items)))
        if not items:
            raise BenchmarkError(f"{spec.name}: {spec.data or REPOSITORY} has no rows.")
        return items


def _published(task: str) -> HubRows:
    return HubRows(
        REPOSITORY, REVISION, f"{task}.jsonl", config=task, local_names=(f"{task}.jsonl", f"{task}.jsonl.gz")
    )


def _item(spec: TaskSpec, row: JsonRow, where: str, index: int) -> BenchmarkItem:
    task = infinitebench_tasks()[spec.task]
    context = text_field(row, "context", where, is_required=True)
    words = _words(spec.task, row, where)
    return BenchmarkItem(
        # Some rows of the authors' share an id, and some have none.
        item_id=f"{spec.name}/{row.get('id', '')}-{index}",
        benchmark=spec.benchmark,
        task=spec.task,
        cluster_id=text_digest(context),
        before_context=task.before.format(**words),
        context=context,
        after_context=task.after.format(**words),
        answer_prefix="",
        answers=_with_letter(_answers(row.get("answer"), where), row, where)
        if spec.task in _OPTIONS
        else _answers(row.get("answer"), where),
        max_new_tokens=spec.max_new_tokens or task.max_new_tokens,
        use_chat_template=False,  # each prompt ends in the beginning of its answer
        metric=task.metric,
    )


def _words(task: str, row: JsonRow, where: str) -> dict[str, str]:
    """What fills the prompt's places beside the context."""
    asked = text_field(row, "input", where) if row.get("input") is not None else ""
    check_size(asked, f"{where}: input")
    words = {"input": asked, "question": asked}
    if task in _OPTIONS:
        options = row.get("options")
        if not isinstance(options, list) or len(options) != len(_LETTERS):
            raise BenchmarkError(f"{where}: options must be {len(_LETTERS)} texts; got {options!r:.60}.")
        words |= dict(zip(_LETTERS, map(str, options), strict=True))
    if task == "math_find":
        found = _TARGET.search(asked)
        if found is None:
            raise BenchmarkError(
                f"{where}: input {asked!r:.60} asks for no number of the list; take the official file."
            )
        words["prefix"] = f"What is {found[0].lower()[:-3]} in the following list?"
    if task == "code_run":
        call = _CALL.search(asked)
        if call is None:
            raise BenchmarkError(f"{where}: input {asked!r:.60} calls no function; take the official file.")
        words |= {"func": call[1], "func_call": call[0]}
    return words


def _with_letter(answers: tuple[str, ...], row: JsonRow, where: str) -> tuple[str, ...]:
    """An option's text and its letter: rows may have the text alone, and the authors' scorer is given both."""
    if len(answers) > 1:
        return answers
    options = [str(option) for option in row["options"]]
    if answers[0] not in options:
        raise BenchmarkError(f"{where}: answer is {answers[0]!r:.60}, which is none of the options.")
    return (answers[0], _LETTERS[options.index(answers[0])])


def _answers(answer: Any, where: str) -> tuple[str, ...]:
    """Texts of a label; a number as JSON has it, since whole ones and floats are compared in different ways."""
    labels = answer if isinstance(answer, list) else [answer]
    texts = tuple(it if isinstance(it, str) else json.dumps(it) for it in labels if it is not None)
    if not texts or not any(text.strip() for text in texts):
        raise BenchmarkError(
            f"{where}: answer is {answer!r:.60}; a row needs a text, a number, or a list of them."
        )
    return texts
