"""Files of a data set on the hub, at a commit: what is had already is taken without a look at the network, and nothing else.

Another revision's file is never taken for one that cannot be had, and what cannot be had is told at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evaluators.benchmark import BenchmarkError, TaskSpec

_TIMEOUT_S = 10.0


class MissingFileError(BenchmarkError):
    """The data set is there at this revision, and has no such file."""


def hub_file(spec: TaskSpec, repository: str, names: Sequence[str], revision: str, folder: str) -> Path:
    """The first of the files `names` that there is at `revision`; `HF_TOKEN` in the environment opens what is gated.

    Raises BenchmarkError when it cannot be had, with `folder` for what a local folder would have to hold; MissingFileError
    when there is none of the names.
    """
    missing: list[str] = []
    for name in dict.fromkeys(names):
        try:
            return _file(spec, repository, name, revision, folder)
        except MissingFileError:
            missing.append(name)
    raise MissingFileError(
        f"{spec.name}: {repository}@{revision} has no file {' nor '.join(missing)}; look at its files on the hub, or set "
        f"`data` to a folder that holds {folder}."
    )


def _file(spec: TaskSpec, repository: str, name: str, revision: str, folder: str) -> Path:
    import huggingface_hub as hub

    where: dict[str, Any] = {
        "repo_id": repository,
        "filename": name,
        "repo_type": "dataset",
        "revision": revision,
    }
    with _told(spec, f"{name} of {repository}@{revision}", folder):
        if isinstance(cached := hub.try_to_load_from_cache(**where), str):
            return Path(cached)
        hub.get_hf_file_metadata(hub.hf_hub_url(**where))  # fails at once; the download retries for 20 s
        return Path(hub.hf_hub_download(**where))


def hub_folder(spec: TaskSpec, repository: str, revision: str, patterns: Sequence[str]) -> Path:
    """A folder with the files of a data set at `revision` that fit `patterns`; none is downloaded twice.

    Raises BenchmarkError when they cannot be had: a part of them is never taken for all.
    """
    import huggingface_hub as hub

    where: dict[str, Any] = {"repo_id": repository, "repo_type": "dataset", "revision": revision}
    with _told(spec, f"{repository}@{revision}", "its files"):
        if _is_listed(where):
            with suppress(hub.errors.LocalEntryNotFoundError):
                return Path(
                    hub.snapshot_download(**where, allow_patterns=list(patterns), local_files_only=True)
                )
        hub.HfApi().dataset_info(repository, revision=revision, timeout=_TIMEOUT_S)  # fails at once, as above
        return Path(hub.snapshot_download(**where, allow_patterns=list(patterns)))


def _is_listed(where: Mapping[str, Any]) -> bool:
    """Whether it is known here which files there are: otherwise the client takes whatever it has for all."""
    import huggingface_hub as hub

    if not hasattr(hub, "get_cached_repo_tree"):  # it is younger than the oldest client we allow
        return False
    try:
        return bool(hub.get_cached_repo_tree(**where))
    except hub.errors.CachedRepoTreeNotFoundError:
        return False


@contextmanager
def _told(spec: TaskSpec, what: str, folder: str) -> Iterator[None]:
    """Whatever the hub's client raises is one sentence with its remedy."""
    from huggingface_hub import errors

    local = f"set `data` to a folder that holds {folder}"
    try:
        yield
    # The client raises its HTTP library's types too, which change with its versions.
    except Exception as error:
        match error:
            case errors.GatedRepoError():  # a RepositoryNotFoundError as well
                remedy = "ask for access on its page and set HF_TOKEN"
            case errors.LocalEntryNotFoundError():  # an EntryNotFoundError as well: there is no network
                remedy = "connect to the internet"
            case errors.EntryNotFoundError():
                raise MissingFileError(str(error)) from error
            case errors.RevisionNotFoundError():
                remedy = "look for the commit in its history on the hub"
            case errors.RepositoryNotFoundError():
                remedy = "check its name, or set HF_TOKEN if it is private"
            case errors.HfHubHTTPError():  # all of the above as well
                remedy = "check HF_TOKEN, or try again later"
            case errors.OfflineModeIsEnabled():
                remedy = "connect to the internet and unset HF_HUB_OFFLINE"
            case _:
                remedy = "connect to the internet"
        raise BenchmarkError(
            f"{spec.name}: {what} cannot be had from the hub ({type(error).__name__}); {remedy}, or {local}."
        ) from error
