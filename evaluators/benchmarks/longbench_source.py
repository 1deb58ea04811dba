"""A task's official jsonl lines in file order, from the user's folder or from the hub's pinned archive."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.hints import nearest_path_hint

HUB_REPOSITORY = "zai-org/LongBench"  # THUDM/LongBench redirects here
HUB_REVISION = "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
_HUB_ARCHIVE = "data.zip"


@contextmanager
def open_task_file(spec: TaskSpec, stem: str) -> Iterator[tuple[Iterable[bytes], str]]:
    """Yield the lines of `stem`.jsonl as bytes, and the name of their source for messages.

    Raises BenchmarkError when the folder, file or hub cannot be read, also while the lines are read.
    """
    if spec.data is None:
        path = _download(spec, stem)
        source = f"{HUB_REPOSITORY}/data/{stem}.jsonl"
    else:
        spec.refuse_options(("revision",), "the data come from a local folder; remove `revision` or `data`.")
        path = _local_file(Path(spec.data).expanduser(), spec, stem)
        source = str(path)
    try:
        with _open(path, stem) as lines:
            yield lines, source
    except (OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise BenchmarkError(f"{source} cannot be read ({error}); copy or download it again.") from error


def _open(path: Path, stem: str) -> AbstractContextManager[Iterable[bytes]]:
    if path.suffix == ".zip":
        return zipfile.ZipFile(path).open(f"data/{stem}.jsonl")
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")


def _local_file(folder: Path, spec: TaskSpec, stem: str) -> Path:
    if not folder.is_dir():
        raise BenchmarkError(f"{spec.name}: there is no folder {folder}. {nearest_path_hint(folder)}")
    candidates = [folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz"]
    for path in candidates:
        if path.is_file():
            return path
    raise BenchmarkError(
        f"{spec.name}: {folder} has neither {candidates[0].name} nor {candidates[1].name}. "
        f"{nearest_path_hint(candidates[0])}"
    )


def _download(spec: TaskSpec, stem: str) -> Path:
    """The official archive, from the local hub cache when it is there (a commit never changes)."""
    # Not datasets.load_dataset: from version 4 on it refuses this repository, which is read by a script.
    import huggingface_hub as hub

    revision = spec.revision or HUB_REVISION
    where: dict[str, Any] = {
        "repo_id": HUB_REPOSITORY,
        "filename": _HUB_ARCHIVE,
        "repo_type": "dataset",
        "revision": revision,
    }
    if isinstance(cached := hub.try_to_load_from_cache(**where), str):
        return Path(cached)
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(**where))  # fails at once; the download retries for 20 s
        return Path(hub.hf_hub_download(**where))
    # The client raises its HTTP library's types, which change with its versions.
    except Exception as error:
        raise BenchmarkError(
            f"{spec.name}: {HUB_REPOSITORY}@{revision} cannot be had from the hub ({type(error).__name__}); "
            f"connect to the internet, or set `data` to a folder that holds {stem}.jsonl or .jsonl.gz."
        ) from error
