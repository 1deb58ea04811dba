"""What a file of rows must hold to be read: our columns, and in those that hold JSON what their readers count on.

A file with a digest holds what was stored. One from before there were digests may have been edited since, and a report that
stumbles over it halfway could not say which file it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from evaluators import scoring
from evaluators.benchmark import UnknownNameError
from jobs.results.schema import RESULT_SCHEMA, STATUSES, ResultError
from jobs.results.seal import read_parquet

REMEDY = "delete it and run the same command again: only its rows are computed anew"
_SHOWN_CHARS = 60
_NUM_OF_A_POINT = 4
_LARGEST = 1e100  # whose square is a float still
_MOST_SECONDS = 1e11  # of Unix time: the year 5138
_TOO_MANY = 2**63  # no 64-bit integer any more


def rows_in(path: Path, content: bytes, *, is_protected: bool) -> pa.Table:
    """The table in the bytes of `path`. Values are looked at where no digest protects them.

    Raises:
        ResultError: it is no file of rows; names file, row, column and remedy.
    """
    try:
        table = _with_absent_nullable_columns(read_parquet(content))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path} is not a readable parquet file ({error}); {REMEDY}") from error
    if set(table.schema.names) != set(RESULT_SCHEMA.names):
        different = sorted(set(table.schema.names) ^ set(RESULT_SCHEMA.names))
        raise ResultError(f"{path} has other columns ({different}), written by another version; {REMEDY}")
    table = table.select(RESULT_SCHEMA.names)
    nulls = [it.name for it in RESULT_SCHEMA if not it.nullable and table[it.name].null_count]
    if nulls:
        raise ResultError(f"{path} has rows without {nulls}; {REMEDY}")
    try:
        table = table.cast(RESULT_SCHEMA)
    except pa.ArrowException as error:
        raise ResultError(f"{path} has a column of another kind ({error}); {REMEDY}") from error
    if not is_protected:
        _check_values(path, table)
    return table


def _with_absent_nullable_columns(table: pa.Table) -> pa.Table:
    """A file from before a nullable column existed says nothing about it: null."""
    for field in RESULT_SCHEMA:
        if field.nullable and field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def _check_values(path: Path, table: pa.Table) -> None:
    for name, fault_of in _FAULTS.items():
        _check_column(path, table, name, table[name].to_pylist(), fault_of)
    pairs = zip(table["metric"].to_pylist(), table["score_parts"].to_pylist(), strict=True)
    scored = [None if None in pair else pair for pair in pairs]
    _check_column(path, table, "score_parts", scored, lambda pair: _parts_fault(*pair))


def _check_column(
    path: Path, table: pa.Table, name: str, values: Sequence[Any], fault_of: Callable[[Any], str]
) -> None:
    found: dict[Any, str] = {None: ""}
    for index, value in enumerate(values):
        # Many rows have the same text.
        if value not in found:
            found[value] = fault_of(value)
        if fault := found[value]:
            row = f"row {index} ({_shown(table['identity'][index].as_py())})"
            text = _shown(table[name][index].as_py())
            raise ResultError(f"{path}, {row}, column {name!r}: {text} is {fault}; {REMEDY}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _of_json(is_right: Callable[[Any], bool], wanted: str) -> Callable[[str], str]:
    def fault_of(text: str) -> str:
        try:
            value = json.loads(text)
        # A number of thousands of digits is a ValueError too.
        except (ValueError, RecursionError) as error:
            return f"no JSON ({error})"
        return "" if is_right(value) else f"not {wanted}"

    return fault_of


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_budget(value: Any) -> bool:
    # A share, a count, or another variant; what that variant is may be spelt out, as deep as it goes.
    return value is None or (
        isinstance(value, dict) and all(_is_number(it) or isinstance(it, str | dict) for it in value.values())
    )


def _has_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_trace(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_point, value))


def _is_point(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != _NUM_OF_A_POINT:
        return False
    step, phase, live_bytes, reserved_bytes = value
    return isinstance(phase, str) and all(map(_is_count, (step, live_bytes, reserved_bytes)))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < _TOO_MANY


def _is_number(value: Any) -> bool:
    # An int of 400 digits is no float any more.
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _out_of_range(value: float) -> str:
    # NaN is in no range. No version has stored one, or an infinity.
    return "" if abs(value) <= _LARGEST else f"no number up to {_LARGEST:g}"


def _parts_fault(metric: str, parts: str) -> str:
    """What keeps the parts of a score from being combined as this metric does it; nothing for one that is not known."""
    try:
        combined = scoring.corpus_score(metric, [json.loads(parts)])
    except UnknownNameError:
        return ""
    except (KeyError, TypeError, ValueError, ArithmeticError):
        combined = math.nan
    return "" if combined is None or _is_number(combined) else f"not what {metric!r} makes a score of"


_OBJECT = _of_json(_is_object, "a JSON object")
_NUMBERS = _of_json(_has_numbers, "a JSON object of finite numbers")
_FAULTS: Mapping[str, Callable[[Any], str]] = {
    "policy_params": _OBJECT,
    "budget_asked": _of_json(_is_budget, "null or a JSON object of a budget"),
    "item_metadata": _OBJECT,
    "counters": _OBJECT,
    "versions": _OBJECT,
    "score_parts": _NUMBERS,
    "seconds": _NUMBERS,
    "trace": _of_json(_is_trace, "a JSON list of [step, phase, live bytes, reserved bytes]"),
    "status": lambda value: "" if value in STATUSES else f"none of {', '.join(STATUSES)}",
    **{it.name: _out_of_range for it in RESULT_SCHEMA if pa.types.is_floating(it.type)},
    "created_at_s": lambda value: "" if 0 <= value < _MOST_SECONDS else "no time in seconds",
}
"""Column → what is wrong with a value of it that is not null; "" where nothing is."""
