"""LongBench rows become items: the official prompt with ids that neither the source nor the limit changes.

A row is complete and well typed, or an error that names its file and line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import islice

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.longbench.tasks import HUB_REPOSITORY, LongBenchTask, published_rows
from evaluators.benchmarks.sources.json_rows import JsonRow, text_field, texts_field
from evaluators.benchmarks.sources.rows import read_rows
from evaluators.item import BenchmarkItem, text_digest

_GOLD_PATTERNS = {"retrieval": re.compile(r"Paragraph \d+"), "retrieval_zh": re.compile(r"段落\d+")}


def load_rows(spec: TaskSpec, definition: LongBenchTask, file_stem: str) -> list[LongBenchRow]:
    """The first `spec.limit` rows of the file, all of them fit to be scored.

    Raises BenchmarkError for a source that cannot be read and, with file and line, for an unusable row.
    """
    spec.refuse_options(("length", "haystack"), "LongBench's texts are given, not generated; remove it.")
    spec.refuse_options(("split",), "LongBench has a single split; remove it.")
    # Rows beyond the limit are neither read nor checked.
    found = islice(read_rows(spec, published_rows(file_stem), "input, context, answers"), spec.limit)
    rows = [_row(row, where) for where, row in found]
    source = spec.data or HUB_REPOSITORY
    if not rows:
        raise BenchmarkError(f"{source} has no rows; give a folder with the complete official files.")
    if definition.metric == "classification" and not all(row.all_classes for row in rows):
        raise BenchmarkError(f"{source}: a row has no all_classes, which scoring {spec.task} needs.")
    if pattern := _GOLD_PATTERNS.get(definition.metric):
        for answer in (answer for row in rows for answer in row.answers):
            if not pattern.search(answer):
                raise BenchmarkError(
                    f"{source}: the answer {answer!r:.60} names no paragraph, which scoring {spec.task} needs."
                )
    return rows


def make_items(
    spec: TaskSpec, definition: LongBenchTask, rows: list[LongBenchRow], task_names: list[str]
) -> list[BenchmarkItem]:
    """One item per row; `task_names` are what their results are grouped by."""
    return [
        _item(spec, definition, row, row_id, task_name)
        for row, row_id, task_name in zip(rows, _row_ids(rows), task_names, strict=True)
    ]


def _item(
    spec: TaskSpec, definition: LongBenchTask, row: LongBenchRow, row_id: str, task_name: str
) -> BenchmarkItem:
    return BenchmarkItem(
        item_id=f"{spec.name}/{row_id}",
        benchmark=spec.benchmark,
        task=task_name,
        cluster_id=text_digest(row.context),  # not the row's id: several questions share a text
        # Braces in a row are safe: `format` does not look into what it puts in.
        before_context=definition.before.format(input=row.input),
        context=row.context,
        after_context=definition.after.format(input=row.input),
        answer_prefix="",
        answers=row.answers,
        max_new_tokens=spec.max_new_tokens or definition.max_new_tokens,
        use_chat_template=definition.use_chat_template,
        metric=definition.metric,
        all_classes=row.all_classes,
        stop_at_newline=definition.stop_at_newline,
        metadata={} if row.length is None else {"official_length_words": row.length},
    )


def _row_ids(rows: list[LongBenchRow]) -> list[str]:
    """The authors' ids, or a digest where a copy has lost them; a repeat gets its number."""
    # Repeats are numbered in the file's order, so that a limit, which keeps the first rows, changes no id.
    num_seen: dict[str, int] = {}
    ids = []
    for row in rows:
        row_id = row.official_id or text_digest(json.dumps([row.input, row.context, row.answers]))
        num_seen[row_id] = num_seen.get(row_id, 0) + 1
        ids.append(row_id if num_seen[row_id] == 1 else f"{row_id}-{num_seen[row_id]}")
    return ids


@dataclass(frozen=True, slots=True)
class LongBenchRow:
    """The fields of an official row that asking and scoring need; `length` is the authors', in words."""

    input: str
    context: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...]
    official_id: str | None
    length: int | None


def _row(row: JsonRow, where: str) -> LongBenchRow:
    return LongBenchRow(
        input=text_field(row, "input", where),
        context=text_field(row, "context", where, is_required=True),
        answers=texts_field(row, "answers", where, is_required=True),
        all_classes=texts_field(row, "all_classes", where),
        official_id=text_field(row, "_id", where) if row.get("_id") is not None else None,
        length=row["length"] if isinstance(row.get("length"), int) else None,
    )
