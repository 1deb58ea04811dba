"""Lines of a data file, plain, gzipped or zipped; an error names the file and the remedy."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, cast

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.hints import nearest_path_hint

MOST_LINE_BYTES = 64 * 2**20
"""Of one row: twelve million tokens of English. Decoded and parsed it takes ten times as much memory."""
MOST_UNPACKED_BYTES = 4 * 2**30
"""Of a packed file: a few MiB can hold more than any disk."""


def find_in_folder(spec: TaskSpec, names: Sequence[str]) -> Path:
    """The first of `names` that is in the folder `spec.data`.

    Raises BenchmarkError, with the nearest name, when there is no such folder or none of the files.
    """
    assert spec.data is not None
    folder = Path(spec.data).expanduser()
    if not folder.is_dir():
        raise BenchmarkError(f"{spec.name}: there is no folder {folder}. {nearest_path_hint(folder)}")
    for path in (folder / name for name in names):
        if path.is_file():
            return path
    listed = " nor ".join(names)
    raise BenchmarkError(
        f"{spec.name}: {folder} has neither {listed}. {nearest_path_hint(folder / names[0])}"
    )


@contextmanager
def open_lines(path: Path, source: str, zip_member: str) -> Iterator[Iterable[bytes]]:
    """Yield the lines of a file; of a zip archive, those of `zip_member`.

    Raises BenchmarkError, which names `source`, when it cannot be read, also while the lines are read, and when a line has
    more than `MOST_LINE_BYTES` or a packed file more than `MOST_UNPACKED_BYTES`.
    """
    with readable(source), _open(path, zip_member) as file:
        yield lines_of(file, source, is_packed=path.suffix in (".zip", ".gz"))


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Whatever a file that is cut off, packed otherwise or gone raises is one sentence."""
    try:
        yield
    except (OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise BenchmarkError(f"{source} cannot be read ({error}); copy or download it again.") from error


def lines_of(file: IO[bytes], source: str, *, is_packed: bool) -> Iterator[bytes]:
    """The lines of an opened file; BenchmarkError for one that is too long, or too many of what `is_packed`."""
    num_bytes, number = 0, 0
    # Not `for line in file`: that reads a line to its end, however far it is.
    while line := file.readline(MOST_LINE_BYTES + 1):
        number, num_bytes = number + 1, num_bytes + len(line)
        if len(line) > MOST_LINE_BYTES:
            raise BenchmarkError(
                f"{source}, line {number}: is longer than {in_mib(MOST_LINE_BYTES)}; give each row a line of its own, and "
                f"split a longer text."
            )
        if is_packed and num_bytes > MOST_UNPACKED_BYTES:
            raise BenchmarkError(
                f"{source} holds more than {in_mib(MOST_UNPACKED_BYTES)} unpacked (at line {number}); unpack it, look "
                f"what it holds, and split it."
            )
        yield line


def check_whole(num_bytes: int, source: str) -> None:
    """Raise BenchmarkError for a file that is too large to be read whole."""
    if num_bytes > MOST_UNPACKED_BYTES:
        raise BenchmarkError(
            f"{source} has {in_mib(num_bytes)}; at most {in_mib(MOST_UNPACKED_BYTES)} are read whole: give each row a line."
        )


def in_mib(num_bytes: int) -> str:
    """A limit in words."""
    return f"{num_bytes / 2**20:,.0f} MiB"


def read_whole(path: Path) -> bytes:
    """The bytes of a small file, unpacked where it ends in .gz.

    Raises BenchmarkError when there are more than `MOST_LINE_BYTES`, and what reading raises.
    """
    with _open(path, "") as file:
        content = file.read(MOST_LINE_BYTES + 1)
    if len(content) > MOST_LINE_BYTES:
        raise BenchmarkError(f"{path} holds more than {in_mib(MOST_LINE_BYTES)}; take a smaller part of it.")
    return content


def _open(path: Path, zip_member: str) -> AbstractContextManager[IO[bytes]]:
    if path.suffix == ".zip":
        return open_member(zipfile.ZipFile(path), zip_member)
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A file of an archive, by default its only one with lines; closing it closes the archive, which nobody else holds.

    Raises KeyError when it is not there, or when there are several.
    """
    found = [name] if name else [it for it in archive.namelist() if it.endswith(".jsonl")]
    if len(found) != 1:
        raise KeyError(f"it holds {len(found)} .jsonl files, and one is needed: unpack it")
    return archive.open(found[0])
