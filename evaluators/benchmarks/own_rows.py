"""The benchmark `file/rows`: the user's own questions, one a row of a file, a data set or a stored object.

Every row is checked before anything runs; the error names the row's place, the fault and the remedy.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace

from evaluators.benchmark import BenchmarkError, TaskInfo, TaskSpec
from evaluators.benchmarks.own_answers import check_lengths, check_metric
from evaluators.benchmarks.sources.addresses import HUB, S3
from evaluators.benchmarks.sources.json_rows import (
    JsonRow,
    check_size,
    text_field,
    texts_field,
)
from evaluators.benchmarks.sources.rows import read_own_rows
from evaluators.benchmarks.sources.tables import SUFFIXES
from evaluators.item import BenchmarkItem, text_digest
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer, as_seen

DEFAULT_MAX_NEW_TOKENS = 64  # a sentence or two; LongBench gives its questions 32 to 128
_TASK = "rows"
ROWS_TASK = f"file/{_TASK}"
FIELDS = (
    "context",
    "question",
    "answers",
    "answer_prefix",
    "max_new_tokens",
    "metric",
    "task",
    "id",
    "all_classes",
)
"""The first three are required."""
DEFAULT_METRIC = "qa_f1"
_MISSPELT = 0.85  # "metrics" and "answer_prefx" are; "source" and "title" are columns of the user's own


@register_benchmark("file")
class RowsFile:
    """Questions on contexts of your own, from a jsonl or parquet file; `task` in a row puts it into another table."""

    def tasks(self) -> tuple[str, ...]:
        """The only task."""
        return (_TASK,)

    def describe(self, task: str) -> TaskInfo:
        """What a file must hold."""
        return TaskInfo(
            name=f"file/{task}",
            about="your own questions",
            metric=DEFAULT_METRIC,
            num_items="yours",
            context="yours",
            answer_tokens=0,
            licence="yours",
            separates="what you deploy for",
            source=f"`data`: a {', '.join(SUFFIXES)} file, {HUB}… or {S3}…, with {', '.join(FIELDS)}",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` rows of the file `spec.data`; every row is checked, also those beyond the limit.

        Raises BenchmarkError for a file that cannot be read and, with file and line, for an unusable row.
        """
        spec.refuse_options(("revision", "length", "haystack"), "the rows are yours; remove it.")
        if spec.data is None:
            spec.refuse_options(("split",), "there are no rows to split; remove it.")
            raise BenchmarkError(f"{spec.name}: name your file ({', '.join(SUFFIXES)}) in `data`.")
        name, rows = read_own_rows(spec, ", ".join(FIELDS[:3]))
        items: list[BenchmarkItem] = []
        seen: set[str] = set()
        for where, raw in rows:
            item = _item(spec, name, parse_own_row(raw, where))
            check_lengths(item, tokenizer, where)
            if item.item_id in seen:
                raise BenchmarkError(f"{where}: this row, or its id, is there already; ids must differ.")
            seen.add(item.item_id)
            # Beyond the limit rows are checked and forgotten: a file may have more of them than memory.
            if spec.limit is None or len(items) < spec.limit:
                items.append(item)
        if not seen:
            raise BenchmarkError(f"{spec.data} has no rows.")
        return [_as_seen(item, tokenizer) for item in items]


def is_rows_file(name: str) -> bool:
    """Whether a name is that of a file this benchmark reads."""
    return name.endswith(SUFFIXES)


def _item(spec: TaskSpec, name: str, row: OwnRow) -> BenchmarkItem:
    # Two files of one sweep may use the same ids, so the table's or the file's name is part of the item's.
    group = row.task or _stem(name)
    row_id = row.own_id or text_digest(json.dumps([row.context, row.question, row.answers]))
    return BenchmarkItem(
        item_id=f"{spec.name}/{group}/{row_id}",
        benchmark=spec.benchmark,
        task=row.task or _TASK,
        cluster_id=text_digest(row.context),
        before_context="",
        context=row.context,
        after_context=f"\n\n{row.question}",
        answer_prefix=row.answer_prefix,
        answers=row.answers,
        max_new_tokens=spec.max_new_tokens or row.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
        use_chat_template=True,
        metric=row.metric,
        all_classes=row.all_classes,
        metadata={} if row.own_id is None else {"own_id": row.own_id},
    )


def _stem(name: str) -> str:
    """A file's name without folder and suffixes; of a data set without any, its own."""
    last = name.rpartition("/")[2].removesuffix(".gz")
    return last.rpartition(".")[0] if last.endswith(SUFFIXES) else last


def _as_seen(item: BenchmarkItem, tokenizer: Tokenizer) -> BenchmarkItem:
    """The item with what the model's answer is compared with in its tokenizer's spelling, of accents for example."""
    # Only of the items that are asked for: it takes a tenth of a millisecond a text, and a file may have a million.
    answers, classes = (
        tuple(as_seen(text, tokenizer) for text in it) for it in (item.answers, item.all_classes)
    )
    return replace(item, answers=answers, all_classes=classes)


@dataclass(frozen=True, slots=True)
class OwnRow:
    """A question, its context, at least one answer, and how the row is asked and scored."""

    context: str
    question: str
    answers: tuple[str, ...]
    answer_prefix: str
    max_new_tokens: int | None
    metric: str
    task: str | None
    own_id: str | None
    all_classes: tuple[str, ...]


def parse_own_row(raw: JsonRow, where: str) -> OwnRow:
    """Check one row; columns that resemble none of ours are left alone. Raises BenchmarkError."""
    _refuse_misspelt(raw, where)
    if isinstance(raw.get("answers"), str):
        raw = raw | {"answers": [raw["answers"]]}
    row = OwnRow(
        context=text_field(raw, "context", where, is_required=True),
        question=text_field(raw, "question", where, is_required=True),
        answers=texts_field(raw, "answers", where, is_required=True),
        answer_prefix=_optional_text(raw, "answer_prefix", where) or "",
        max_new_tokens=_count(raw, where),
        metric=_optional_text(raw, "metric", where) or DEFAULT_METRIC,
        task=_task(raw, where),
        own_id=_id(raw, where),
        all_classes=texts_field(raw, "all_classes", where),
    )
    for field in ("question", "answer_prefix", "metric", "task", "own_id"):
        check_size(getattr(row, field) or "", f"{where}: {field.removeprefix('own_')}")
    check_metric(row.metric, row.answers, row.all_classes, where)
    return row


def _refuse_misspelt(raw: JsonRow, where: str) -> None:
    for name in raw.keys() - set(FIELDS):
        # Only fields that the row lacks: beside `metric`, a column `metrics` is the user's own.
        near = difflib.get_close_matches(name, set(FIELDS) - raw.keys(), n=1, cutoff=_MISSPELT)
        if near:
            raise BenchmarkError(f"{where}: there is no field {name!r}. Did you mean {near[0]!r}?")


def _optional_text(raw: JsonRow, field: str, where: str) -> str | None:
    return None if raw.get(field) is None else text_field(raw, field, where)


def _task(raw: JsonRow, where: str) -> str | None:
    task = _optional_text(raw, "task", where)
    if task is not None and (not task.strip() or "/" in task):
        raise BenchmarkError(f"{where}: task is {task!r}; give a name without a slash, or leave it out.")
    return task


def _id(raw: JsonRow, where: str) -> str | None:
    """The row's id; a whole number counts as its digits."""
    value = raw.get("id")
    # A bool is an int in Python, and no id.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None if value is None else text_field(raw, "id", where, is_required=True)


def _count(raw: JsonRow, where: str) -> int | None:
    value = raw.get("max_new_tokens")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise BenchmarkError(f"{where}: max_new_tokens must be a whole number from 1; got {value!r:.60}.")
    return value
