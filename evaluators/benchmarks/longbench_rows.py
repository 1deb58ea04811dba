"""A LongBench row is either complete and well typed or an error that names its file and line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from evaluators.benchmark import BenchmarkError


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
    rows: list[LongBenchRow] = []
    for number, line in enumerate(lines, start=1):
        if limit is not None and len(rows) == limit:
            break
        if line.strip():
            rows.append(_parse(line, f"{source}, line {number}"))
    if not rows:
        raise BenchmarkError(f"{source} has no rows; give a folder with the complete official files.")
    return rows


def _parse(line: bytes, where: str) -> LongBenchRow:
    try:
        row = json.loads(line.decode("utf-8"))
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair can be escaped, and is no text
    except UnicodeEncodeError as error:
        raise BenchmarkError(
            f"{where}: holds half a surrogate pair ({error.reason}); remove the line."
        ) from error
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise BenchmarkError(
            f"{where}: not valid JSON at column {error.colno} ({error.msg}); fix or remove the line."
        ) from error
    if not isinstance(row, dict):
        raise BenchmarkError(f"{where}: expected an object with input, context, answers; got {line[:40]!r}.")
    return LongBenchRow(
        input=_text(row, "input", where),
        context=_text(row, "context", where, is_required=True),
        answers=_texts(row, "answers", where, is_required=True),
        all_classes=_texts(row, "all_classes", where),
        official_id=_text(row, "_id", where) if row.get("_id") is not None else None,
        length=row["length"] if isinstance(row.get("length"), int) else None,
    )


def _text(row: dict[str, Any], field: str, where: str, *, is_required: bool = False) -> str:
    value = _present(row, field, where)
    if not isinstance(value, str):
        raise BenchmarkError(f"{where}: {field} must be a string; got {value!r:.60}.")
    if is_required and not value.strip():
        raise BenchmarkError(f"{where}: {field} is empty; remove the line.")
    return value


def _texts(row: dict[str, Any], field: str, where: str, *, is_required: bool = False) -> tuple[str, ...]:
    if not is_required and row.get(field) is None:
        return ()
    value = _present(row, field, where)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise BenchmarkError(f"{where}: {field} must be a list of strings; got {value!r:.60}.")
    if is_required and not value:
        raise BenchmarkError(f"{where}: {field} is an empty list; a row needs at least one to be scored.")
    return tuple(value)


def _present(row: dict[str, Any], field: str, where: str) -> Any:
    if field not in row:
        raise BenchmarkError(
            f"{where}: the field {field!r} is missing; the row has {', '.join(sorted(row))}."
        )
    return row[field]
