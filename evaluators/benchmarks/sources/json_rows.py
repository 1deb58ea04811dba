"""A row of data is either an object with well-typed fields or an error that names its file, line and fault."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any

from evaluators.benchmark import BenchmarkError

JsonRow = dict[str, Any]
MOST_CHARS = 1_000_000
"""Of a text that is read whole, as an answer or a question is; a context may be longer."""


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
    except ValueError as error:  # a whole number of more digits than Python reads
        raise BenchmarkError(f"{where}: a number has too many digits ({error}); write it as text.") from error
    except RecursionError as error:
        raise BenchmarkError(
            f"{where}: its brackets are nested too deep to be read; remove the line."
        ) from error
    if not isinstance(row, dict):
        raise BenchmarkError(f"{where}: expected an object with {fields}; got {line[:40]!r}.")
    return row


def _present(row: JsonRow, field: str, where: str) -> Any:
    if field not in row:
        raise BenchmarkError(
            f"{where}: the field {field!r} is missing; the row has {', '.join(sorted(row))}."
        )
    return row[field]
