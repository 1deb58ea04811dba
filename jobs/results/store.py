"""Where result rows live: one parquet file per work unit, written whole, found by identity.

A file under `rows/` either holds every row of its unit or does not exist: it is written beside its final place
and renamed. Of two rows with one identity the newer one counts.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from evaluators.hints import nearest_path_hint
from jobs.console.paths import file_in_the_way
from jobs.planning.work import RowKey
from jobs.results.schema import DONE_STATUSES, RESULT_SCHEMA, ResultError, Row, check_rows

_REMEDY = "delete it and run the same command again: only its rows are computed anew"


class ResultStore:
    """The rows and settings of one sweep under `root`; one writer, any number of readers.

    `rows/<unit_id>.parquet` are the results. `settings.yaml`, `run_meta.json` and `plan.json` say what the
    latest run was asked for, with what versions, and which rows it owes.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.rows_folder = self.root / "rows"

    def check_exists(self) -> None:
        """Raise ResultError, with the likely misspelling, when there is no such folder: for what only reads."""
        if not self.root.is_dir():
            raise ResultError(
                f"there is no results folder {str(self.root)!r}. {nearest_path_hint(self.root)}"
            )

    def write_unit(self, unit_id: str, rows: Sequence[Row]) -> Path:
        """Write all rows of a unit as one file, replacing what the unit wrote before; an error changes nothing.

        Raises:
            ResultError: rows that break the schema, or the folder cannot be written.
        """
        check_rows(unit_id, rows)
        try:
            table = pa.Table.from_pylist(list(rows), schema=RESULT_SCHEMA)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise ResultError(f"unit {unit_id}: a row does not fit the result schema: {error}") from error
        path = self.rows_folder / f"{unit_id}.parquet"
        # In memory first: a row that cannot be written leaves no half file behind.
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        _write_whole(path, sink.getvalue().to_pybytes())
        return path

    def read_table(self) -> pa.Table:
        """All rows, the newest of each identity, in the order of their creation; empty when there are none."""
        tables = [_read_file(path) for path in self._files()]
        table = pa.concat_tables(tables) if tables else RESULT_SCHEMA.empty_table()
        return newest_of_each_identity(table)

    def identities(self) -> frozenset[str]:
        """Identities that have a result (ok or truncated)."""
        table = self.read_table().select(["identity", "status"])
        is_done = pc.is_in(table["status"], value_set=pa.array(DONE_STATUSES))
        return frozenset(table.filter(is_done)["identity"].to_pylist())

    def check_integrity(self) -> None:
        """Raise ResultError unless every file is readable, named for its unit, and holds well-formed rows."""
        for path in self._files():
            try:
                check_rows(path.stem, _read_file(path).to_pylist())
            except ResultError as error:
                raise ResultError(f"{path}: {error}") from error

    def write_settings(self, resolved: Mapping[str, Any]) -> None:
        """Store the resolved settings; the file can be given to `sweep.py` again."""
        _write_whole(self.root / "settings.yaml", yaml.safe_dump(dict(resolved), sort_keys=False).encode())

    def read_settings_text(self) -> str:
        """What `write_settings` stored last, as YAML; "" when there is nothing."""
        content = self._read("settings.yaml")
        try:
            return "" if content is None else content.decode()
        except UnicodeDecodeError as error:
            raise ResultError(f"{self.root / 'settings.yaml'} cannot be read ({error}); delete it") from error

    def write_text(self, name: str, text: str) -> None:
        """Store a file beside the rows, whole."""
        _write_whole(self.root / name, text.encode())

    def write_run_meta(self, meta: Mapping[str, Any]) -> None:
        """Store what ran: git commit, library versions, arguments."""
        _write_whole(self.root / "run_meta.json", json.dumps(meta, indent=2).encode())

    def read_run_meta(self) -> dict[str, Any]:
        """What `write_run_meta` stored last; empty when there is nothing."""
        content = self._read("run_meta.json")
        try:
            return {} if content is None else dict(json.loads(content))
        except (ValueError, TypeError) as error:
            raise ResultError(f"{self.root / 'run_meta.json'} cannot be read ({error}); delete it") from error

    def write_plan(self, keys: Iterable[RowKey]) -> None:
        """Store which rows the latest run owes, done ones included, in the order they are shown in."""
        # The key "cells" stays, so that folders of earlier versions can be read.
        owed = [[key.identity, key.item_id, key.label] for key in keys]
        _write_whole(self.root / "plan.json", json.dumps({"cells": owed}).encode())

    def read_plan(self) -> tuple[RowKey, ...] | None:
        """The rows the latest run owes, or None when no plan was stored."""
        content = self._read("plan.json")
        if content is None:
            return None
        try:
            return tuple(RowKey(*map(str, key)) for key in json.loads(content)["cells"])
        except (ValueError, KeyError, TypeError) as error:
            raise ResultError(
                f"{self.root / 'plan.json'} is not a stored plan ({error}); delete it"
            ) from error

    def _files(self) -> list[Path]:
        self._refuse_a_file()
        return sorted(self.rows_folder.glob("*.parquet"))

    def _read(self, name: str) -> bytes | None:
        """A file beside the rows; None when it is not there."""
        self._refuse_a_file()
        path = self.root / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ResultError(f"{path} cannot be read ({error.strerror}); delete it") from error

    def _refuse_a_file(self) -> None:
        """Raise ResultError if a file stands where the folder should be."""
        # To look for files inside a file finds none, and raises nothing: it would read as an empty store.
        if fault := file_in_the_way(self.rows_folder):
            raise ResultError(fault)


def newest_of_each_identity(table: pa.Table) -> pa.Table:
    """Keep, of rows with one identity, the one created last; a failed row never hides a result.

    Row order becomes order of creation, failed rows first.
    """
    # Failed rows first whatever their time: the clocks of two machines may disagree.
    is_done = pc.is_in(table["status"], value_set=pa.array(DONE_STATUSES))
    keyed = table.append_column("is_done", pc.cast(is_done, pa.int8()))
    keys = [("is_done", "ascending"), ("created_at_s", "ascending"), ("unit_id", "ascending")]
    table = table.take(pc.sort_indices(keyed, sort_keys=keys))
    # Later entries replace earlier ones.
    last = {identity: index for index, identity in enumerate(table["identity"].to_pylist())}
    return table.take(pa.array(sorted(last.values()), type=pa.int64()))


def _read_file(path: Path) -> pa.Table:
    try:
        # Otherwise a folder called `a=b` on the way would become a column.
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise ResultError(f"{path} is not a readable parquet file ({error}); {_REMEDY}") from error
    table = _with_absent_nullable_columns(table)
    if set(table.schema.names) != set(RESULT_SCHEMA.names):
        different = sorted(set(table.schema.names) ^ set(RESULT_SCHEMA.names))
        raise ResultError(f"{path} has other columns ({different}), written by another version; {_REMEDY}")
    return table.select(RESULT_SCHEMA.names).cast(RESULT_SCHEMA)


def _with_absent_nullable_columns(table: pa.Table) -> pa.Table:
    """A file from before a nullable column existed says nothing about it: null."""
    for field in RESULT_SCHEMA:
        if field.nullable and field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside `path` and rename: no reader ever sees a part of a file."""
    # In the same folder, since a rename is atomic on one file system only; not *.parquet, so that no reader takes it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or the name could survive a power failure without the content
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ResultError(f"cannot write {path}: {error}; choose another output_dir") from error
