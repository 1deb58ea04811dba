"""Rows of a benchmark or of the user's own, from a folder, a file, the hub at a commit, or an S3 store: one reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
from evaluators.benchmarks.sources.cards import CARD, DATA_PATTERNS, Choice, inferred, matching, patterns_of
from evaluators.benchmarks.sources.files import find_in_folder, readable
from evaluators.benchmarks.sources.hub import MissingFileError, hub_file, hub_folder
from evaluators.benchmarks.sources.tables import SUFFIXES, Rows, rows_of_file
from evaluators.hints import nearest_path_hint


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
    member, wanted = published.zip_member, " or ".join(published.names)
    if spec.data is None:
        revision = spec.revision or published.revision
        if spec.revision is not None:
            check_commit(revision, spec.name)
        path = hub_file(spec, published.repository, (published.file,), revision, wanted)
        return rows_of_file(
            path, f"{published.repository}/{member or published.file}", fields, zip_member=member
        )
    spec.refuse_options(("revision",), "`data` says where the rows are; remove `revision` or `data`.")
    if spec.data.startswith(HUB):
        address = hub_address(spec.data, spec.name)
        if address.inside and not address.inside.endswith(SUFFIXES):
            return _rows_of_hub_set(spec, address, split, fields)
        names = (address.inside,) if address.inside else (published.file, *published.names)
        path = hub_file(spec, address.repository, names, address.revision, wanted)
        return rows_of_file(path, f"{address.repository}/{path.name}", fields, zip_member=member)
    if is_address(spec.data):
        check_store(spec.data, spec.name)
        return object_store.rows(spec, published.names, fields, member)
    if (path := Path(spec.data).expanduser()).is_file():
        return rows_of_file(path, str(path), fields, zip_member=member)
    if (path / CARD).is_file() and not any((path / name).is_file() for name in published.names):
        return _rows_of_folder(path, Choice(spec.name, str(path), published.config, split), fields)
    path = find_in_folder(spec, published.names)
    return rows_of_file(path, str(path), fields, zip_member=member)


def read_own_rows(spec: TaskSpec, fields: str) -> tuple[str, Rows]:
    """The rows of the user's own file, folder or data set `spec.data`, after the name of their source.

    Raises:
        BenchmarkError: as `read_rows` does.
    """
    assert spec.data is not None
    split, path = spec.split or "test", Path(spec.data).expanduser()
    address = hub_address(spec.data, spec.name) if spec.data.startswith(HUB) else None
    if address and not address.inside.endswith(SUFFIXES):
        name = address.inside or address.repository.partition("/")[2]
        return name, _rows_of_hub_set(spec, address, split, fields)
    if (path / CARD).is_file():
        return path.name, _rows_of_folder(path, Choice(spec.name, str(path), None, split), fields)
    spec.refuse_options(("split",), "a file has no splits; remove it.")
    if address:
        path = hub_file(spec, address.repository, (address.inside,), address.revision, address.inside)
        return address.inside, rows_of_file(path, f"{address.repository}/{address.inside}", fields)
    if is_address(spec.data):
        check_store(spec.data, spec.name)
        return spec.data, object_store.rows(spec, (), fields, "")
    if not path.is_file():
        listed = f"a folder without a card ({CARD}) is none" if path.is_dir() else nearest_path_hint(path)
        raise BenchmarkError(f"{spec.name}: there is no file {path}; {listed}")
    return path.name, rows_of_file(path, str(path), fields)


def _rows_of_hub_set(spec: TaskSpec, address: HubAddress, split: str, fields: str) -> Rows:
    """Of a data set as its card says; only the files of what is chosen are downloaded."""
    repository, revision = address.repository, address.revision
    choice = Choice(spec.name, repository, address.inside or None, split)
    try:
        patterns = patterns_of(_text(hub_file(spec, repository, (CARD,), revision, "its files")), choice)
    except MissingFileError:
        patterns = None
    if patterns is None:
        paths = inferred(hub_folder(spec, repository, revision, (CARD, *DATA_PATTERNS)), choice)
    elif any(sign in it for it in patterns for sign in "*?["):
        paths = matching(hub_folder(spec, repository, revision, patterns), patterns, choice)
    else:
        paths = [hub_file(spec, repository, (it,), revision, it) for it in patterns]
    return _rows_of_files([(f"{repository}/{path.name}", path) for path in paths], fields)


def _rows_of_folder(folder: Path, choice: Choice, fields: str) -> Rows:
    patterns = patterns_of(_text(folder / CARD), choice)
    paths = inferred(folder, choice) if patterns is None else matching(folder, patterns, choice)
    return _rows_of_files([(str(path), path) for path in paths], fields)


def _rows_of_files(files: Sequence[tuple[str, Path]], fields: str) -> Rows:
    for source, path in files:
        yield from rows_of_file(path, source, fields)


def _text(card: Path) -> str:
    with readable(str(card)):
        return card.read_text(encoding="utf-8", errors="replace")
