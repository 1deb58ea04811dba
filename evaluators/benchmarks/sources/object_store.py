"""Rows of objects in an S3 store, read where they lie: never from a copy that may be older than they are.

pyarrow finds keys and endpoint where Amazon's tools do: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, profiles.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.sources.files import check_whole, lines_of, open_member, readable
from evaluators.benchmarks.sources.json_rows import (
    ROWS_AT_ONCE,
    JsonRow,
    read_json,
    read_json_rows,
    table_rows,
)
from evaluators.benchmarks.sources.noting import noting_object

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem


def rows(spec: TaskSpec, names: Sequence[str], fields: str, zip_member: str) -> Iterator[tuple[str, JsonRow]]:
    """Each row of the object `spec.data`, or of the first of `names` under that prefix, with where it stands.

    Raises:
        BenchmarkError: the store or the object cannot be read, or a row is none; also while rows are read.
    """
    assert spec.data is not None
    with _told(spec):
        store, path = store_and_path(spec.data)
        found = _object(store, path, names, spec)
        source = f"s3://{found.path}"
        read = _rows_of(store, found.path, source, fields, zip_member)
        yield from noting_object(read, source, f"{found.size} bytes of {found.mtime:%Y-%m-%dT%H:%M:%SZ}")


def read_object(spec: TaskSpec, names: Sequence[str]) -> tuple[str, bytes]:
    """The address and the bytes of the object `spec.data`, or of the first of `names` under that prefix.

    Raises:
        BenchmarkError: it cannot be read, or is too large to be read whole.
    """
    assert spec.data is not None
    with _told(spec):
        store, path = store_and_path(spec.data)
        found = _object(store, path, names, spec)
        check_whole(found.size, f"s3://{found.path}")
        with store.open_input_file(found.path) as file:
            return f"s3://{found.path}", file.read()


@contextmanager
def _told(spec: TaskSpec) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise BenchmarkError(
            f"{spec.name}: {spec.data} cannot be read ({error!s:.300}); check the address and AWS_ENDPOINT_URL, "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error


def store_and_path(address: str) -> tuple[FileSystem, str]:
    """The store of an address, and the path in it."""
    from pyarrow.fs import FileSystem

    store, path = FileSystem.from_uri(address)
    return store, path


def _object(store: FileSystem, path: str, names: Sequence[str], spec: TaskSpec) -> FileInfo:
    from pyarrow.fs import FileType

    for place in (path, *(f"{path.rstrip('/')}/{name}" for name in names)):
        if (found := store.get_file_info(place)).type == FileType.File:
            return found
    listed = f" nor {' nor '.join(names)} under it" if names else ""
    raise BenchmarkError(f"{spec.name}: there is no object {spec.data}{listed}; check the address.")


def _rows_of(
    store: FileSystem, path: str, source: str, fields: str, zip_member: str
) -> Iterator[tuple[str, JsonRow]]:
    if path.endswith(".parquet"):
        yield from table_rows(_table_rows(store, path), source)
        return
    with store.open_input_file(path) as file:
        yield from _json_rows(file, path, source, fields, zip_member)


def _table_rows(store: FileSystem, path: str) -> Iterator[JsonRow]:
    import pyarrow.parquet as pq

    with store.open_input_file(path) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_AT_ONCE):
            yield from batch.to_pylist()


def _json_rows(
    file: Any, path: str, source: str, fields: str, zip_member: str
) -> Iterator[tuple[str, JsonRow]]:
    with readable(source):
        if path.endswith(".json"):
            check_whole(file.size(), source)
            yield from read_json(file.read(), source, fields)
            return
        with _unpacked(io.BufferedReader(file), path, zip_member) as unpacked:
            lines = lines_of(unpacked, source, is_packed=path.endswith((".gz", ".zip")))
            yield from read_json_rows(lines, source, fields)


def _unpacked(file: IO[bytes], path: str, zip_member: str) -> IO[bytes]:
    if path.endswith(".zip"):
        return open_member(zipfile.ZipFile(file), zip_member)
    return cast("IO[bytes]", gzip.open(file)) if path.endswith(".gz") else file
