"""Rows of a benchmark or of the user's own, from a folder, a file, the hub at a commit, or an S3 store: one reader for all.

`datasets` reads parquet files and folders with a card, streaming, so that no second copy of them is written. It fetches
nothing, since offline it takes another revision's rows for those asked for, and reads no JSON, since it makes dates of
texts and one type of a column (measured on 5.2.0).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.sources import object_store
from evaluators.benchmarks.sources.addresses import (
    HUB,
    HubAddress,
    check_commit,
    check_store,
    hub_address,
    is_address,
)
from evaluators.benchmarks.sources.files import (
    check_whole,
    find_in_folder,
    hub_file,
    hub_folder,
    open_lines,
    readable,
)
from evaluators.benchmarks.sources.json_rows import (
    ROWS_AT_ONCE,
    JsonRow,
    read_json_array,
    read_json_rows,
    table_rows,
)
from evaluators.benchmarks.sources.noting import noting_path
from evaluators.hints import nearest_name_hint, nearest_path_hint

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".json", ".zip")
"""Of files with rows: a JSON object a line, a table, a JSON array of objects, and an archive with such lines."""
_CARD = "README.md"

Rows = Iterator[tuple[str, JsonRow]]


@dataclass(frozen=True, slots=True)
class HubRows:
    """A published file of rows: `file` of a data set at a commit, of an archive its `zip_member`.

    `local_names` are what a copy may be called in a folder; `config` is what a card calls these rows.
    """

    repository: str
    revision: str
    file: str
    config: str | None = None
    zip_member: str = ""
    local_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What a copy may be called: by default as the file itself."""
        return self.local_names or (self.file.rpartition("/")[2],)

    @property
    def place(self) -> str:
        """Where they come from, for people."""
        return f"{self.repository}@{self.revision[:8]} on the hub"


def read_rows(spec: TaskSpec, published: HubRows, fields: str, *, split: str = "test") -> Rows:
    """Each row of what `spec.data` names, by default of what is `published`, with where it stands ("file, line 3").

    `fields` says what a row should hold; `split` is taken from a folder or data set with a card.

    Raises:
        BenchmarkError: there is no such file, it cannot be had or read, or a row is none; also while rows are read.
    """
    if spec.data is None:
        revision = spec.revision or published.revision
        if spec.revision is not None:
            check_commit(revision, spec.name)
        path = hub_file(spec, published.repository, published.file, revision, " or ".join(published.names))
        name = published.zip_member or published.file
        return _rows_of_file(path, f"{published.repository}/{name}", fields, zip_member=published.zip_member)
    spec.refuse_options(("revision",), "`data` says where the rows are; remove `revision` or `data`.")
    if spec.data.startswith(HUB):
        address = hub_address(spec.data, spec.name)
        file = address.inside if address.inside.endswith(SUFFIXES) else published.file
        path = hub_file(spec, address.repository, file, address.revision, " or ".join(published.names))
        return _rows_of_file(path, f"{address.repository}/{file}", fields, zip_member=published.zip_member)
    if is_address(spec.data):
        check_store(spec.data, spec.name)
        return object_store.rows(spec, published.names, fields, published.zip_member)
    if (path := Path(spec.data).expanduser()).is_file():
        return _rows_of_file(path, str(path), fields, zip_member=published.zip_member)
    if (path / _CARD).is_file() and not any((path / name).is_file() for name in published.names):
        return _rows_of_card(path, str(path), published.config, split, spec.name)
    path = find_in_folder(spec, published.names)
    return _rows_of_file(path, str(path), fields, zip_member=published.zip_member)


def read_own_rows(spec: TaskSpec, fields: str) -> tuple[str, Rows]:
    """The rows of the user's own file, folder or data set `spec.data`, after the name of their source.

    Raises:
        BenchmarkError: as `read_rows` does.
    """
    assert spec.data is not None
    split = spec.split or "test"
    if spec.data.startswith(HUB):
        address = hub_address(spec.data, spec.name)
        if address.inside.endswith(SUFFIXES):
            path = hub_file(spec, address.repository, address.inside, address.revision, address.inside)
            return address.inside, _rows_of_file(path, f"{address.repository}/{address.inside}", fields)
        return _own_rows_of_hub(spec, address, split)
    path = Path(spec.data).expanduser()
    if not path.is_dir():
        spec.refuse_options(("split",), "a file has no splits; remove it.")
    if is_address(spec.data):
        check_store(spec.data, spec.name)
        return spec.data, object_store.rows(spec, (), fields, "")
    if path.is_dir() and (path / _CARD).is_file():
        return path.name, _rows_of_card(path, str(path), None, split, spec.name)
    if not path.is_file():
        listed = f"a folder without a card ({_CARD}) is none" if path.is_dir() else nearest_path_hint(path)
        raise BenchmarkError(f"{spec.name}: there is no file {path}; {listed}")
    return path.name, _rows_of_file(path, str(path), fields)


def _own_rows_of_hub(spec: TaskSpec, address: HubAddress, split: str) -> tuple[str, Rows]:
    folder = hub_folder(spec, address.repository, address.revision)
    name = address.inside or address.repository.partition("/")[2]
    return name, _rows_of_card(folder, address.repository, address.inside or None, split, spec.name)


def _rows_of_file(path: Path, source: str, fields: str, *, zip_member: str = "") -> Rows:
    return noting_path(_read_file(path, source, fields, zip_member), path)


def _read_file(path: Path, source: str, fields: str, zip_member: str) -> Rows:
    if path.name.endswith(".parquet"):
        yield from table_rows(_streamed(source, path="parquet", data_files=str(path), split="train"), source)
    elif path.name.endswith(".json"):
        yield from _rows_of_array(path, source, fields)
    elif path.name.endswith((".jsonl", ".jsonl.gz", ".gz", ".zip")):
        with open_lines(path, source, zip_member) as lines:
            yield from read_json_rows(lines, source, fields)
    else:
        raise BenchmarkError(f"{source} is none of {', '.join(SUFFIXES)}; rename or convert it.")


def _rows_of_array(path: Path, source: str, fields: str) -> Rows:
    with readable(source):
        check_whole(path.stat().st_size, source)
        content = path.read_bytes()
    return read_json_array(content, source, fields)


def _rows_of_card(folder: Path, source: str, config: str | None, split: str, task: str) -> Rows:
    """Rows of a folder whose card says which files are which configuration and split."""
    datasets = _datasets()
    try:
        configs = datasets.get_dataset_config_names(str(folder))
        if config is None and len(configs) > 1:
            raise BenchmarkError(
                f"{task}: {source} has the configurations {', '.join(configs)}; name one behind a slash."
            )
        if config is not None and config not in configs:
            raise BenchmarkError(
                f"{task}: {source} has no configuration {config!r}. {nearest_name_hint(config, configs)}"
            )
        splits = datasets.get_dataset_split_names(str(folder), config or configs[0])
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, BenchmarkError):
            raise
        raise BenchmarkError(f"{task}: {source} is no data set that can be read ({error:.300}).") from error
    # One split is what is meant whatever it is called, as train in a set that was never split.
    wanted = splits[0] if len(splits) == 1 else split
    if wanted not in splits:
        raise BenchmarkError(f"{task}: {source} has no split {split!r}. {nearest_name_hint(split, splits)}")
    rows = _streamed(source, path=str(folder), name=config or configs[0], split=wanted)
    return noting_path(table_rows(rows, source), folder)


def _streamed(source: str, **what: Any) -> Iterator[JsonRow]:
    import pyarrow as pa

    datasets = _datasets()
    try:
        found = datasets.load_dataset(**what, streaming=True, **_batches(what))
        if found.info.builder_name == "json":  # whose reader would rewrite what they hold
            raise BenchmarkError(f"{source} holds JSON; name the file itself in `data`.")
        yield from found
    except BenchmarkError:
        raise
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


def _datasets() -> Any:
    """The library, which takes seconds to import, and whose errors are told in our words."""
    import datasets

    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    return datasets


def _batches(what: dict[str, Any]) -> dict[str, int]:
    return {"batch_size": ROWS_AT_ONCE} if what["path"] == "parquet" else {}
