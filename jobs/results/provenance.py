"""What is needed to compute a number again: commit, library versions, arguments; and the sweep's lasting id."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.console.addresses import hidden_in

_PACKAGES = ("kvmerger", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "ray", "mlflow")
_GIT_TIMEOUT_S = 10
_COMMIT_VARIABLE = "KVMERGER_COMMIT"
"""What an image says it was built from: the code in it lies in no repository."""
_ID_DIGITS = 8
_KIND_OF_META: Mapping[str, type | tuple[type, ...]] = {
    "sweep_id": str,
    "sweep_ids": dict,
    "git_commit": (str, type(None)),
    "versions": dict,
    "args": list,
    "data_read": list,
    "started_at_s": (int, float),
    "ray": dict,
}
_MOST_SECONDS = 1e11  # of Unix time: the year 5138


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on, without importing them."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """The commit this code is at, `+changes` when files differ from it.

    Outside a repository it is what `KVMERGER_COMMIT` says, else None.
    """
    # Of the code, not of the current folder, which may be another repository.
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return (
            f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit
        )
    except (OSError, subprocess.SubprocessError):
        return os.environ.get(_COMMIT_VARIABLE) or None


def new_sweep_id(name: str) -> str:
    """A unique id that begins with the sweep's name."""
    # It stands in quotes in MLflow's search expressions, which know no escapes.
    safe_name = re.sub(r"[^\w.-]", "_", name)
    return f"{safe_name}-{uuid.uuid4().hex[:_ID_DIGITS]}"


def describe_run(
    name: str,
    setting: Sequence[str | None],
    previous: Mapping[str, Any],
    read: Sequence[Mapping[str, str | int]] = (),
) -> dict[str, Any]:
    """The run's metadata; a sweep that goes on in the folder of a `previous` one keeps its id.

    `setting` is what rows of one sweep share (model, revision, mode …): another one in the same folder is another sweep.
    `read` tells what files the items were read from, with their digests.
    """
    # All ids are kept, so that going back to earlier settings finds the earlier sweep's run.
    sweep_ids = dict(previous.get("sweep_ids", {}))
    key = " ".join(str(part) for part in (name, *setting))
    sweep_ids.setdefault(key, new_sweep_id(name))
    return {
        "sweep_id": sweep_ids[key],
        "sweep_ids": sweep_ids,
        "git_commit": git_commit(),
        "versions": library_versions(),
        "args": hidden_in(sys.argv),
        "data_read": hidden_in(list(read)),
        "started_at_s": time.time(),
    }


def with_sweep_ids(previous: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The `previous` metadata with the ids that `meta` has besides: for a run that has not begun yet."""
    return {"sweep_id": meta["sweep_id"], **previous, "sweep_ids": meta["sweep_ids"]}


def _git(folder: Path, *arguments: str) -> str:
    # Raises for a repository of another user too, as code mounted into a container is.
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=_GIT_TIMEOUT_S,
    )
    return done.stdout.strip()


def known_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Stored metadata without what is of another kind, as after an edit by hand or of another version."""
    known: dict[str, Any] = {
        key: value for key, value in meta.items() if isinstance(value, _KIND_OF_META.get(key, object))
    }
    if not _is_sweep_id(known.get("sweep_id", "")):
        known.pop("sweep_id", None)
    if not 0 <= known.get("started_at_s", -1) < _MOST_SECONDS:
        known.pop("started_at_s", None)
    if "sweep_ids" in known:
        known["sweep_ids"] = {key: it for key, it in known["sweep_ids"].items() if _is_sweep_id(it)}
    if "data_read" in known:
        known["data_read"] = [it for it in known["data_read"] if isinstance(it, dict)]
    return known


def _is_sweep_id(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]+", value) is not None
