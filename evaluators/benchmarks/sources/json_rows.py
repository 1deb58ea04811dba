"""A row of data is either an object with well-typed fields or an error that names its file, line and fault."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from evaluators.benchmark import BenchmarkError
from evaluators.benchmarks.sources.files import MOST_LINE_BYTES

JsonRow = dict[str, Any]
MOST_CHARS = 1_000_000
"""Of a text that is read whole, as an answer or a question is; a context may be longer."""
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")
ROWS_AT_ONCE = 64
"""Of a table: a few MiB of parquet can hold a text a million times."""


def read_json_rows(lines: Iterable[bytes], source: str, fields: str) -> Iterator[tuple[str, JsonRow]]:
    """Each row with where it stands ("file, line 3", from 1); blank lines are skipped.

    Raises BenchmarkError for a line that is no object; `fields` says what one should hold.
    """
    for number, line in enumerate(lines, start=1):
        # Excel and Windows put it first, and joined files keep it inside.
        line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            where = f"{source}, line {number}"
            yield where, _parse(line, where, fields)


def read_json(content: bytes, source: str, fields: str) -> Iterator[tuple[str, JsonRow]]:
    """Each row of a JSON file, an array or an object a line, with where it stands ("file, row 3", from 1).

    Raises BenchmarkError for what is neither; `fields` says what a row should hold.
    """
    if not _ARRAY.match(content):
        yield from read_json_rows(content.splitlines(), source, fields)
        return
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(
            f"{source} is no JSON that can be read ({error}); copy or download it again."
        ) from error
    for number, row in enumerate(found, start=1):
        where = f"{source}, row {number}"
        _refuse_half_pairs(row, where)
        yield where, _object(row, where, fields, repr(row))


def table_rows(rows: Iterable[JsonRow], source: str) -> Iterator[tuple[str, JsonRow]]:
    """Each row of a table with where it stands ("file, row 3", from 1); a null is a field the row does not have.

    Raises BenchmarkError for a text that no line could hold.
    """
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        for name, value in row.items():
            if isinstance(value, str) and len(value) > MOST_LINE_BYTES:
                raise BenchmarkError(
                    f"{where}: {name} has {len(value):,} characters; at most {MOST_LINE_BYTES:,} are read: split it."
                )
        yield where, {key: value for key, value in row.items() if value is not None}


def text_field(row: JsonRow, field: str, where: str, *, is_required: bool = False) -> str:
    """A string; a required one holds more than blanks. Raises BenchmarkError."""
    value = _present(row, field, where)
    if not isinstance(value, str):
        raise BenchmarkError(f"{where}: {field} must be a string; got {value!r:.60}.")
    if is_required and not value.strip():
        raise BenchmarkError(f"{where}: {field} is empty; remove the line.")
    return value


def texts_field(row: JsonRow, field: str, where: str, *, is_required: bool = False) -> tuple[str, ...]:
    """A list of strings; () when it is not required and absent. Raises BenchmarkError."""
    if not is_required and row.get(field) is None:
        return ()
    value = _present(row, field, where)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise BenchmarkError(f"{where}: {field} must be a list of strings; got {value!r:.60}.")
    if is_required and not value:
        raise BenchmarkError(f"{where}: {field} is an empty list; a row needs at least one to be scored.")
    for number, entry in enumerate(value, start=1):
        check_size(entry, f"{where}: {field}, entry {number}")
    return tuple(value)


def check_size(text: str, what: str) -> None:
    """Raise BenchmarkError for a text of more than `MOST_CHARS` characters; `what` says where it stands."""
    if len(text) > MOST_CHARS:
        raise BenchmarkError(
            f"{what} has {len(text):,} characters, and only a context may have more than {MOST_CHARS:,}; shorten it, or put "
            f"it into the context."
        )


def _parse(line: bytes, where: str, fields: str) -> JsonRow:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise BenchmarkError(
            f"{where}: not valid JSON at column {error.colno} ({error.msg}); fix or remove the line."
        ) from error
    except ValueError as error:  # a whole number of more digits than Python reads
        raise BenchmarkError(f"{where}: a number has too many digits ({error}); write it as text.") from error
    except RecursionError as error:
        raise BenchmarkError(
            f"{where}: its brackets are nested too deep to be read; remove the line."
        ) from error
    _refuse_half_pairs(row, where)
    return _object(row, where, fields, repr(line[:40]))


def _refuse_half_pairs(row: Any, where: str) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair can be escaped, and is no text
    except UnicodeEncodeError as error:
        raise BenchmarkError(
            f"{where}: holds half a surrogate pair ({error.reason}); remove the line."
        ) from error


def _object(row: Any, where: str, fields: str, shown: str) -> JsonRow:
    if not isinstance(row, dict):
        raise BenchmarkError(f"{where}: expected an object with {fields}; got {shown:.42}.")
    return row


def _present(row: JsonRow, field: str, where: str) -> Any:
    if field not in row:
        raise BenchmarkError(
            f"{where}: the field {field!r} is missing; the row has {', '.join(sorted(row))}."
        )
    return row[field]
