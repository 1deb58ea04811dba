"""Rows on disk, plain, gzipped or zipped, are the same lines; a file that cannot be read is named."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.hints import nearest_path_hint


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

    Raises BenchmarkError, which names `source`, when it cannot be read, also while the lines are read.
    """
    try:
        with _open(path, zip_member) as lines:
            yield lines
    except (OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise BenchmarkError(f"{source} cannot be read ({error}); copy or download it again.") from error


def _open(path: Path, zip_member: str) -> AbstractContextManager[Iterable[bytes]]:
    if path.suffix == ".zip":
        return zipfile.ZipFile(path).open(zip_member)
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")
