"""Rows of one file, whatever holds them. `datasets` reads tables, streaming, so that no second copy of them is written.

It reads no JSON: it makes dates of texts and one type of a column (measured on 5.2.0).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluators.benchmark import BenchmarkError
from evaluators.benchmarks.sources.files import check_whole, open_lines, readable
from evaluators.benchmarks.sources.json_rows import (
    ROWS_AT_ONCE,
    JsonRow,
    read_json,
    read_json_rows,
    table_rows,
)
from evaluators.benchmarks.sources.noting import noting_path

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".json", ".zip")
"""Of files with rows: a JSON object a line, a table, a JSON array of objects, and an archive with such lines."""

Rows = Iterator[tuple[str, JsonRow]]


def rows_of_file(path: Path, source: str, fields: str, *, zip_member: str = "") -> Rows:
    """Each row of a file with where it stands in `source`; `fields` says what one should hold.

    Raises:
        BenchmarkError: it cannot be read, or a row is none; also while rows are read.
    """
    return noting_path(_read(path, source, fields, zip_member), path)


def _read(path: Path, source: str, fields: str, zip_member: str) -> Rows:
    if path.name.endswith(".parquet"):
        yield from table_rows(_streamed(path, source), source)
    elif path.name.endswith(".json"):
        with readable(source):
            check_whole(path.stat().st_size, source)
            content = path.read_bytes()
        yield from read_json(content, source, fields)
    elif path.name.endswith((".jsonl", ".gz", ".zip")):
        with open_lines(path, source, zip_member) as lines:
            yield from read_json_rows(lines, source, fields)
    else:
        raise BenchmarkError(f"{source} is none of {', '.join(SUFFIXES)}; rename or convert it.")


def _streamed(path: Path, source: str) -> Iterator[JsonRow]:
    import pyarrow as pa

    datasets = quiet_datasets()
    try:
        yield from datasets.load_dataset(
            "parquet", data_files=str(path), split="train", streaming=True, batch_size=ROWS_AT_ONCE
        )
    except (
        OSError,
        ValueError,
        RuntimeError,
        pa.ArrowException,
        datasets.exceptions.DatasetGenerationError,
    ) as error:
        raise BenchmarkError(
            f"{source} is not a readable table ({error!s:.300}); copy or write it again."
        ) from error


def quiet_datasets() -> Any:
    """The library, which takes seconds to import, and whose errors are told in our words."""
    import datasets

    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    return datasets
