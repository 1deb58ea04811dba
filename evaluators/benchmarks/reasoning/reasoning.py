r"""GSM8K, MATH-500 and AIME: a question of a hundred tokens and an answer of hundreds to thousands that fills the cache.

There is nothing to compress before the answer but for `gsm8k_cot`, whose eight worked examples are the context. The others
are for policies that act while answering.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from evaluators.benchmark import BenchmarkError, TaskInfo, TaskSpec
from evaluators.benchmarks.sources.json_rows import JsonRow, check_size, text_field
from evaluators.benchmarks.sources.rows import HubRows, read_rows
from evaluators.item import BenchmarkItem, text_digest
from evaluators.metrics.boxed_math import evened, gold_text
from evaluators.registry import register_benchmark
from evaluators.scoring import can_score
from evaluators.tokenizer import Tokenizer

REQUEST = r"Please reason step by step, and put your final answer within \boxed{}."
"""The sentence of Qwen's and DeepSeek's model cards."""
_MARKED = re.compile(r"\s*#### *(.+)")
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # what GSM8K's authors trained a calculator with

Solve = Callable[[JsonRow, str], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ReasoningTask:
    """A task: where its rows lie, how question and worked solution come from one, and how long an answer may be.

    `num_shots`: worked examples, which are the item's context; 0: the question alone, in a chat.
    """

    about: str
    metric: str
    max_new_tokens: int
    rows: HubRows
    fields: str
    read: Solve
    num_shots: int = 0


def _gsm8k(row: JsonRow, where: str) -> tuple[str, str]:
    solution = _CALCULATOR.sub("", text_field(row, "answer", where, is_required=True))
    return text_field(row, "question", where, is_required=True), solution


def _boxed(row: JsonRow, where: str) -> tuple[str, str]:
    """Question and solution; where the solution's own box is not the answer, the answer boxed."""
    question = text_field(row, "problem" if "problem" in row else "question", where, is_required=True)
    answer = str(row["answer"]) if isinstance(row.get("answer"), int) else text_field(row, "answer", where)
    solution = text_field(row, "solution", where) if row.get("solution") is not None else ""
    is_said = r"\boxed" in solution and gold_text(solution) == evened(answer)
    return question, solution if is_said else rf"\boxed{{{answer}}}"


_GSM8K = HubRows(
    "openai/gsm8k",
    "cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
    "main/test-00000-of-00001.parquet",
    config="main",
    local_names=("test.jsonl", "test.jsonl.gz", "test.parquet", "gsm8k.jsonl"),
)
_MATH = HubRows(
    "HuggingFaceH4/MATH-500",
    "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    "test.jsonl",
    local_names=("math500.jsonl", "math500.jsonl.gz", "test.jsonl", "test.jsonl.gz", "math.jsonl"),
)
# Of these two no commit could be checked: the user names one, or a file.
_AIME24 = HubRows(
    "HuggingFaceH4/aime_2024",
    "",
    "data/train-00000-of-00001.parquet",
    local_names=("aime24.jsonl", "aime24.jsonl.gz", "aime24.parquet"),
)
_AIME25 = HubRows(
    "yentinglin/aime_2025",
    "",
    "data/train-00000-of-00001.parquet",
    local_names=("aime25.jsonl", "aime25.jsonl.gz", "aime25.parquet"),
)
TASKS = {
    "gsm8k": ReasoningTask(
        "school arithmetic, worked step by step", "final_number", 1024, _GSM8K, "question and answer", _gsm8k
    ),
    "gsm8k_cot": ReasoningTask(
        "school arithmetic after eight worked examples",
        "answer_sentence",
        400,
        _GSM8K,
        "question and answer",
        _gsm8k,
        8,
    ),
    "math500": ReasoningTask(
        "competition mathematics", "boxed_math", 2048, _MATH, "problem and answer", _boxed
    ),
    "math500_value": ReasoningTask(
        "competition mathematics, fractions compared by value",
        "boxed_math_value",
        2048,
        _MATH,
        "problem and answer",
        _boxed,
    ),
    "aime24": ReasoningTask(
        "the AIME of 2024, 30 problems", "boxed_integer", 8192, _AIME24, "problem and answer", _boxed
    ),
    "aime25": ReasoningTask(
        "the AIME of 2025, 30 problems", "boxed_integer", 8192, _AIME25, "problem and answer", _boxed
    ),
}


_NUM_ITEMS = {_GSM8K.repository: 1319, _MATH.repository: 500, _AIME24.repository: 30, _AIME25.repository: 30}


@register_benchmark("reasoning")
class Reasoning:
    """Worked solutions to problems, read from the answer's last box or number; greedy, one answer an item."""

    def tasks(self) -> tuple[str, ...]:
        """GSM8K without and with worked examples, MATH-500 by text and by value, AIME of two years."""
        return tuple(TASKS)

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and where its rows lie."""
        it = TASKS[task]
        where = it.rows.place if it.rows.revision else f"{it.rows.repository} on the hub, with `revision`"
        return TaskInfo(
            name=f"reasoning/{task}",
            about=it.about,
            metric=it.metric,
            source=f"{where}, or `data`: a folder with {it.rows.names[0]}",
            num_items=f"{_NUM_ITEMS[it.rows.repository]:,}",
            context="8 examples" if it.num_shots else "none",
            answer_tokens=it.max_new_tokens,
            licence="AIME: the MAA's problems" if task.startswith("aime") else "GSM8K, MATH-500: MIT",
            separates="gsm8k_cot: eviction and forms of its examples"
            if it.num_shots
            else "what acts while answering: nothing else changes a cache that the answer fills",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` problems in the file's order.

        Raises BenchmarkError for a source that cannot be read and, with file and line, for an unusable row.
        """
        spec.refuse_options(("length", "haystack", "split"), "the problems are given; remove it.")
        task = TASKS[spec.task]
        items: list[BenchmarkItem] = []
        if spec.data is None and not (spec.revision or task.rows.revision):
            raise BenchmarkError(
                f"{spec.name}: no commit of {task.rows.repository} is known here; give `revision`, its 40 digits, "
                f"or `data`, a folder with {task.rows.names[0]}."
            )
        for where, row in read_rows(spec, task.rows, task.fields):
            if spec.limit is not None and len(items) == spec.limit:
                break
            items.append(_item(spec, task, row, where))
        if not items:
            raise BenchmarkError(f"{spec.name}: {spec.data or task.rows.repository} has no rows.")
        return items


def _item(spec: TaskSpec, task: ReasoningTask, row: JsonRow, where: str) -> BenchmarkItem:
    question, solution = task.read(row, where)
    check_size(question, f"{where}: the question")
    check_size(solution, f"{where}: the solution")
    if task.num_shots:  # said as the examples say it
        solution = _MARKED.sub(r" The answer is \1.", solution)
    if not can_score(task.metric, solution):
        raise BenchmarkError(
            f"{where}: the solution {solution[-60:]!r} states no answer that {task.metric} reads."
        )
    digest = text_digest(question)
    context = worked_examples(task.num_shots)
    return BenchmarkItem(
        item_id=f"{spec.name}/{digest}",
        benchmark=spec.benchmark,
        task=spec.task,
        cluster_id=digest,  # the problem's, though worked examples are shared: it is problems that are drawn
        before_context="",
        context=context,
        after_context=f"Q: {question}\nA:" if context else f"{question}\n\n{REQUEST}",
        answer_prefix="",
        answers=(solution,),
        max_new_tokens=spec.max_new_tokens or task.max_new_tokens,
        use_chat_template=not context,
        metric=task.metric,
        stop_at_newline=bool(
            context
        ),  # the examples are lines; a base model goes on with a question of its own
        metadata={} if not isinstance(row.get("level"), int) else {"level": row["level"]},
    )


@functools.cache
def worked_examples(num_shots: int) -> str:
    """The first questions and answers of the chain-of-thought prompt, a blank line behind each; "" for none."""
    file = importlib.resources.files(__package__) / "shots.json"
    shots = json.loads(file.read_text(encoding="utf-8"))["shots"][:num_shots]
    return "".join(f"Q: {it['question']}\nA: {it['answer']}\n\n" for it in shots)
