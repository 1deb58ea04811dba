"""Where result rows live: one parquet file per work unit, written whole, found by identity.

A file under `rows/` either holds every row of its unit or does not exist: it is written beside its final place
and renamed. Of two rows with one identity the newer one counts.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from evaluators.hints import nearest_path_hint
from jobs.console.paths import file_in_the_way
from jobs.console.whole_file import write_whole
from jobs.planning.work import RowKey
from jobs.results.provenance import known_meta
from jobs.results.rows_file import REMEDY, rows_in
from jobs.results.schema import DONE_STATUSES, RESULT_SCHEMA, ResultError, Row, check_rows
from jobs.results.seal import (
    Seal,
    read_json,
    read_yaml_text,
    seal_of,
    sealed_json,
    sealed_parquet,
    sealed_yaml,
)
from jobs.results.writer_lock import WriterLock, refuse_other_writer

logger = logging.getLogger(__name__)

_REMEDY_BESIDE = "delete it and run the same command again, which writes it anew"
_said_unprotected: set[Path] = set()
"""Folders of which this process has said that files in them have no digest."""


class ResultStore:
    """The rows and settings of one sweep under `root`; one writer, any number of readers.

    `rows/<unit_id>.parquet` are the results. `settings.yaml`, `run_meta.json` and `plan.json` say what the
    latest run was asked for, with what versions, and which rows it owes.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.rows_folder = self.root / "rows"
        self._lock: WriterLock | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one that writes, from before it is read what is done to after the last file; not twice at once.

        Raises:
            FolderInUseError: another process writes here.
            ResultError: the folder cannot be written.
        """
        self._lock = WriterLock(self.root)
        try:
            with self._lock.held():
                yield
        finally:
            self._lock = None

    @contextlib.contextmanager
    def kept_still(self) -> Iterator[None]:
        """Nobody else writes meanwhile; for who reads, so a folder that may only be read will do.

        Raises:
            FolderInUseError: another process writes here.
        """
        if os.access(self.root, os.W_OK):
            with self.held():
                yield
            return
        refuse_other_writer(self.root)
        yield

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
        # A link inside the folder may lead into somebody's own; whoever wants another disk links the whole output_dir.
        if self.rows_folder.is_symlink():
            raise ResultError(f"{self.rows_folder} is a link, through which nothing is written; delete it")
        path = self.rows_folder / f"{unit_id}.parquet"
        # In memory first: a row that cannot be written leaves no half file behind.
        self._write(path, sealed_parquet(table))
        return path

    def read_table(self) -> pa.Table:
        """All rows, the newest of each identity, in the order of their creation; empty when there are none."""
        tables = [self._read_rows(path) for path in self._files()]
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
                check_rows(path.stem, self._read_rows(path).to_pylist())
            except ResultError as error:
                raise ResultError(f"{path}: {error}") from error

    def write_settings(self, resolved: Mapping[str, Any]) -> None:
        """Store the resolved settings; the file can be given to `sweep.py` again."""
        text = yaml.safe_dump(dict(resolved), sort_keys=False)
        self._write(self.root / "settings.yaml", sealed_yaml(text))

    def read_settings_text(self) -> str:
        """What `write_settings` stored last, as YAML; "" when there is nothing."""
        content = self._read(
            "settings.yaml", f"{_REMEDY_BESIDE}; or take out its first and last line, if it was edited"
        )
        try:
            return "" if content is None else read_yaml_text(content)
        except ValueError as error:
            raise ResultError(
                f"{self.root / 'settings.yaml'} cannot be read ({error}); {_REMEDY_BESIDE}"
            ) from error

    def write_text(self, name: str, text: str) -> None:
        """Store a file beside the rows, whole. It has no digest: for what people read."""
        self._write(self.root / name, text.encode())

    def write_json(self, name: str, value: Mapping[str, Any], indent: int | None = None) -> None:
        """Store an object beside the rows, whole and with its digest."""
        self._write(self.root / name, sealed_json(value, indent))

    def read_json(self, name: str, remedy: str = _REMEDY_BESIDE) -> dict[str, Any] | None:
        """What `write_json` stored under this name; None when there is nothing. `remedy` is told where it is damaged."""
        content = self._read(name, remedy)
        try:
            return None if content is None else read_json(content)
        except (ValueError, RecursionError) as error:
            raise ResultError(f"{self.root / name} cannot be read ({error}); {remedy}") from error

    def write_run_meta(self, meta: Mapping[str, Any]) -> None:
        """Store what ran: git commit, library versions, arguments."""
        self.write_json("run_meta.json", meta, indent=2)

    def read_run_meta(self) -> dict[str, Any]:
        """What `write_run_meta` stored last, without what is of another kind; empty when there is nothing."""
        # Metadata of another version, or edited by hand, keeps nobody from a report of sound rows.
        return known_meta(self.read_json("run_meta.json") or {})

    def write_plan(self, keys: Iterable[RowKey]) -> None:
        """Store which rows the latest run owes, done ones included, in the order they are shown in."""
        # The key "cells" stays, so that folders of earlier versions can be read.
        self.write_json("plan.json", {"cells": [[key.identity, key.item_id, key.label] for key in keys]})

    def read_plan(self) -> tuple[RowKey, ...] | None:
        """The rows the latest run owes, or None when no plan was stored."""
        stored = self.read_json("plan.json")
        if stored is None:
            return None
        try:
            return tuple(RowKey(*map(str, key)) for key in stored["cells"])
        except (KeyError, TypeError) as error:
            raise ResultError(
                f"{self.root / 'plan.json'} is not a stored plan ({error}); {_REMEDY_BESIDE}"
            ) from error

    def _files(self) -> list[Path]:
        self._refuse_a_file()
        return sorted(self.rows_folder.glob("*.parquet"))

    def _read(self, name: str, remedy: str) -> bytes | None:
        """A file beside the rows; None when it is not there."""
        self._refuse_a_file()
        path = self.root / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ResultError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
        self._is_protected(path, content, remedy)
        return content

    def _read_rows(self, path: Path) -> pa.Table:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ResultError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from error
        return rows_in(path, content, is_protected=self._is_protected(path, content, REMEDY))

    def _is_protected(self, path: Path, content: bytes, remedy: str) -> bool:
        """Whether a digest says that these bytes were stored. Raises ResultError where it says that they were not."""
        match seal := seal_of(content):
            case Seal.BROKEN:
                raise ResultError(f"{path} is damaged: its bytes are not those that were stored; {remedy}")
            case Seal.ABSENT if self.root.absolute() not in _said_unprotected:
                _said_unprotected.add(self.root.absolute())
                logger.warning(
                    "%s has files from before files had digests (%s is one): they are read unprotected, and a flipped bit "
                    "in them may not be noticed",
                    self.root,
                    path.name,
                )
        return seal is Seal.INTACT

    def _write(self, path: Path, content: bytes) -> None:
        if self._lock is not None:
            self._lock.check()
        try:
            write_whole(path, content)
        except OSError as error:
            raise ResultError(f"cannot write {path}: {error}; choose another output_dir") from error

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
