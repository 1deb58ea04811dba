"""What the items of a task were read from: noted while rows are read, for whoever asks, and told as it was then."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from evaluators.benchmarks.sources.files import readable

RowT = TypeVar("RowT")

_HUB_FILE = re.compile(
    r"datasets--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})/(?P<file>.+)"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True)
class ReadSource:
    """A file or object that rows were read from; of the hub's, where it lies there. "" is what there is not.

    `sha256` is of the file's bytes. An object of a store is not read twice for one: of it `version` tells size and time.
    `num_rows` were read, which a limit ends early.
    """

    place: str
    repository: str = ""
    commit: str = ""
    file: str = ""
    sha256: str = ""
    version: str = ""
    num_rows: int = 0

    def told(self) -> dict[str, str | int]:
        """As JSON has it, without what there is not."""
        return {it.name: value for it in fields(self) if (value := getattr(self, it.name)) != ""}


_noted: ContextVar[list[ReadSource] | None] = ContextVar("_noted", default=None)


@contextmanager
def noted_sources() -> Iterator[list[ReadSource]]:
    """A list that gets whatever rows are read from inside the block."""
    found: list[ReadSource] = []
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def noting_path(rows: Iterable[RowT], path: Path) -> Iterator[RowT]:
    """`rows`, which are read from a file; counted and noted only where somebody asked."""
    if (noted := _noted.get()) is None:
        yield from rows
        return
    with readable(str(path)):
        source = _source_of(path)
    noted.append(source)
    yield from _counted(rows, source)


def noting_object(rows: Iterable[RowT], address: str, version: str) -> Iterator[RowT]:
    """`rows`, which are read from an object of a store; `version` tells its size and when it was changed."""
    if (noted := _noted.get()) is None:
        yield from rows
        return
    noted.append(source := ReadSource(address, version=version))
    yield from _counted(rows, source)


def _counted(rows: Iterable[RowT], source: ReadSource) -> Iterator[RowT]:
    for row in rows:
        source.num_rows += 1
        yield row


def _source_of(path: Path) -> ReadSource:
    sha256 = _file_sha256(path)
    # The folders of the hub's cache say more than a `revision` does, which may be a branch.
    if found := _HUB_FILE.search(path.absolute().as_posix()):
        repository = f"{found['owner']}/{found['name']}"
        return ReadSource("hub", repository, found["commit"], found["file"], sha256)
    return ReadSource(str(path.absolute()), sha256=sha256)


def _file_sha256(path: Path) -> str:
    # The hub's cache calls a large file by its sha256, and has checked it; a data set's tasks may share a GB.
    real = path.resolve()
    if _SHA256.fullmatch(real.name):
        return real.name
    stat = real.stat()
    return _sha256_at(real, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256_at(path: Path, _num_bytes: int, _changed_at_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
