"""Lines of a data file, plain, gzipped or zipped, from a local folder or the hub; an error names the file and the remedy."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.hints import nearest_path_hint

MOST_LINE_BYTES = 64 * 2**20
"""Of one row: twelve million tokens of English. Decoded and parsed it takes ten times as much memory."""
MOST_UNPACKED_BYTES = 4 * 2**30
"""Of a packed file: a few MiB can hold more than any disk."""
_HUB_TIMEOUT_S = 10.0


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
        return zipfile.ZipFile(path).open(
            zip_member
        )  # closing the member also closes the archive, which nobody else holds
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def hub_file(spec: TaskSpec, repository: str, filename: str, revision: str, local_names: str) -> Path:
    """The file at `revision`, downloaded at most once; `HF_TOKEN` in the environment opens what is gated.

    Raises BenchmarkError, naming `local_names` as what a local folder would have to hold, when it cannot be had: another
    revision is never taken for it.
    """
    import huggingface_hub as hub

    where: dict[str, Any] = {
        "repo_id": repository,
        "filename": filename,
        "repo_type": "dataset",
        "revision": revision,
    }
    with _told(spec, f"{filename} of {repository}@{revision}", f"holds {local_names}"):
        # Without a look at the network: a cached revision must also load on a machine that has none.
        if isinstance(cached := hub.try_to_load_from_cache(**where), str):
            return Path(cached)
        hub.get_hf_file_metadata(hub.hf_hub_url(**where))  # fails at once; the download retries for 20 s
        return Path(hub.hf_hub_download(**where))


def hub_folder(spec: TaskSpec, repository: str, revision: str) -> Path:
    """A folder with all tables of a data set at `revision` and its card; what is there already is not downloaded again.

    Raises BenchmarkError when it cannot be had. What files there are is asked each time: offline, a part of them would look
    like all.
    """
    import huggingface_hub as hub

    with _told(spec, f"{repository}@{revision}", "has its files, or name one file of it behind a slash"):
        hub.HfApi().dataset_info(repository, revision=revision, timeout=_HUB_TIMEOUT_S)
        patterns = ["README.md", "*.parquet"]
        return Path(
            hub.snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=patterns)
        )


@contextmanager
def _told(spec: TaskSpec, what: str, folder: str) -> Iterator[None]:
    """Whatever the hub's client raises is one sentence."""
    try:
        yield
    # The client raises its HTTP library's types, which change with its versions.
    except Exception as error:
        raise BenchmarkError(
            f"{spec.name}: {what} cannot be had from the hub ({type(error).__name__}); "
            f"connect to the internet, or set `data` to a folder that {folder}."
        ) from error
