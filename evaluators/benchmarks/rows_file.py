"""Your own questions, one a row: a row that cannot be asked or scored is named before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from evaluators.benchmark import BenchmarkError, TaskInfo, TaskSpec
from evaluators.benchmarks.json_rows import JsonRow, read_json_rows
from evaluators.benchmarks.own_row import FIELDS, OwnRow, parse_own_row
from evaluators.benchmarks.row_file import open_lines
from evaluators.hints import nearest_path_hint
from evaluators.item import BenchmarkItem, text_digest
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer

DEFAULT_MAX_NEW_TOKENS = 64  # a sentence or two; LongBench gives its questions 32 to 128
_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_TASK = "rows"
ROWS_TASK = f"file/{_TASK}"


@register_benchmark("file")
class RowsFile:
    """Questions on contexts of your own, from a jsonl or parquet file; `task` in a row puts it into another table."""

    def tasks(self) -> tuple[str, ...]:
        """The only task."""
        return (_TASK,)

    def describe(self, task: str) -> TaskInfo:
        """What a file must hold."""
        return TaskInfo(
            f"file/{task}",
            "your own questions",
            "qa_f1",
            f"`data`: a {', '.join(_SUFFIXES)} file with {', '.join(FIELDS)}",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` rows of the file `spec.data`; every row is checked, also those beyond the limit.

        Raises BenchmarkError for a file that cannot be read and, with file and line, for an unusable row.
        """
        spec.refuse_options(("revision", "length", "haystack", "split"), "the rows are yours; remove it.")
        path = _file_of(spec)
        items: dict[str, BenchmarkItem] = {}
        for where, raw in _raw_rows(path):
            item = _item(spec, path, parse_own_row(raw, where))
            if item.item_id in items:
                raise BenchmarkError(f"{where}: this row, or its id, is there already; ids must differ.")
            items[item.item_id] = item
        if not items:
            raise BenchmarkError(f"{path} has no rows.")
        return list(items.values())[: spec.limit]


def is_rows_file(name: str) -> bool:
    """Whether a name is that of a file this benchmark reads."""
    return name.endswith(_SUFFIXES)


def _file_of(spec: TaskSpec) -> Path:
    if spec.data is None:
        raise BenchmarkError(f"{spec.name}: name your file ({', '.join(_SUFFIXES)}) in `data`.")
    path = Path(spec.data).expanduser()
    if not path.is_file():
        raise BenchmarkError(f"{spec.name}: there is no file {path}. {nearest_path_hint(path)}")
    if not is_rows_file(path.name):
        raise BenchmarkError(f"{spec.name}: {path} is none of {', '.join(_SUFFIXES)}; rename or convert it.")
    return path


def _raw_rows(path: Path) -> Iterator[tuple[str, JsonRow]]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    with open_lines(path, str(path), zip_member="") as lines:
        yield from read_json_rows(lines, str(path), ", ".join(FIELDS[:3]))


def _parquet_rows(path: Path) -> Iterable[tuple[str, JsonRow]]:
    """Rows counted from 1; a null is a field the row does not have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise BenchmarkError(f"{path} is not a readable parquet file ({error}); write it again.") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path}, row {number}", {key: value for key, value in row.items() if value is not None}


def _item(spec: TaskSpec, path: Path, row: OwnRow) -> BenchmarkItem:
    # Two files of one sweep may use the same ids, so the table's or the file's name is part of the item's.
    group = row.task or path.name.removesuffix(".gz").rpartition(".")[0]
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
