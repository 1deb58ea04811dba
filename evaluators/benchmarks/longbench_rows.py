"""A LongBench row is either complete and well typed or an error that names its file and line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from evaluators.benchmark import BenchmarkError
from evaluators.benchmarks.json_rows import JsonRow, read_json_rows, text_field, texts_field


@dataclass(frozen=True, slots=True)
class LongBenchRow:
    """The fields of an official row that asking and scoring need; `length` is the authors', in words."""

    input: str
    context: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...]
    official_id: str | None
    length: int | None


def read_rows(lines: Iterable[bytes], source: str, limit: int | None) -> list[LongBenchRow]:
    """Parse jsonl lines until `limit` rows are read; blank lines are skipped.

    Raises BenchmarkError with `source`, line number (from 1) and what is wrong, or when there is no row.
    """
    found = read_json_rows(lines, source, "input, context, answers")
    rows = [_row(row, where) for where, row in islice(found, limit)]
    if not rows:
        raise BenchmarkError(f"{source} has no rows; give a folder with the complete official files.")
    return rows


def _row(row: JsonRow, where: str) -> LongBenchRow:
    return LongBenchRow(
        input=text_field(row, "input", where),
        context=text_field(row, "context", where, is_required=True),
        answers=texts_field(row, "answers", where, is_required=True),
        all_classes=texts_field(row, "all_classes", where),
        official_id=text_field(row, "_id", where) if row.get("_id") is not None else None,
        length=row["length"] if isinstance(row.get("length"), int) else None,
    )
