"""Addresses that `data` may hold in place of a path: a data set of the hub at a commit, or objects of an S3 store."""

from __future__ import annotations

import re
from dataclasses import dataclass

from evaluators.benchmark import BenchmarkError

HUB, S3 = "hf://", "s3://"
_HUB_SHAPE = (
    f"{HUB}datasets/OWNER/NAME@COMMIT, with /CONFIG or /FILE behind it where the data set has several"
)
_HUB_ADDRESS = re.compile(
    r"hf://datasets/(?P<repository>[^/@\s]+/[^/@\s]+)@(?P<revision>[^/@\s]+)(?:/(?P<inside>[^@\s]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A data set of the hub at a commit; `inside` names a configuration or a file in it, "" neither."""

    repository: str
    revision: str
    inside: str


def is_address(data: str) -> bool:
    """Whether `data` names no local file or folder."""
    return "://" in data


def checked_address(data: str, task: str) -> str:
    """`data`, an address of which no parts are missing. Raises BenchmarkError, for `task`, with the shape it should have."""
    if data.startswith(HUB):
        hub_address(data, task)
    else:
        check_store(data, task)
    return data


def hub_address(data: str, task: str) -> HubAddress:
    """The parts of an address of the hub. Raises BenchmarkError, for `task`, with the shape it should have."""
    found = _HUB_ADDRESS.fullmatch(data)
    if found is None:
        shown = repr(data) if data.rpartition("@")[0].count(":") < 2 else f"{HUB}…"  # it may hold a password
        raise BenchmarkError(f"{task}: {shown} is no address of a data set; write {_HUB_SHAPE}.")
    check_commit(found["revision"], task)
    return HubAddress(found["repository"], found["revision"], (found["inside"] or "").strip("/"))


def check_commit(revision: str, task: str) -> None:
    """Raise BenchmarkError for a branch, a tag or a part of a commit's name: what they name changes."""
    if not _COMMIT.fullmatch(revision):
        raise BenchmarkError(
            f"{task}: {revision!r} is no commit; give all 40 digits of one (`git ls-remote` or the hub's history of the "
            f"data set shows them), since a branch names other rows every month."
        )


def check_store(data: str, task: str) -> None:
    """Raise BenchmarkError for an address of another kind than the two, and for one that holds a password."""
    if not data.startswith(S3):
        raise BenchmarkError(
            f"{task}: {data.partition('://')[0]}:// is read from nowhere; copy the file, or give {HUB}… or {S3}…"
        )
    if set("@:") & set(
        data.removeprefix(S3).partition("/")[0]
    ):  # of a key that holds a slash, the part before it
        raise BenchmarkError(
            f"{task}: the address of the store holds a name and a password; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            f"and leave them out."
        )
