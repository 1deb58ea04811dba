"""Records of measurements as JSON lines: what was measured, with the code, versions and device that make it comparable.

On a machine that got a copy of the tree there is no commit; the digest of the sources says which code it was all the same:

    python -m bench.records        # this checkout's
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_SOURCES = ("kvmerger", "evaluators", "jobs", "bench")
_PACKAGES = ("torch", "transformers", "kvpress", "triton")
_DIGITS = 12  # of a digest or a commit: 48 bits


def provenance(device: str) -> dict[str, Any]:
    """Code, versions and device (its name for ``cuda``), as every record of a benchmark has them."""
    return {"device": device_name(device), "versions": versions(), **code()}


def code() -> dict[str, str | None]:
    """``sources``: a digest of our Python files; ``commit``: of the checkout, None where there is none."""
    from jobs.results.provenance import git_commit

    commit = git_commit()
    if commit is not None:
        number, plus, _ = commit.partition("+")  # a plus says that files differ from the commit
        commit = number[:_DIGITS] + plus
    return {"commit": commit, "sources": sources_digest(ROOT)}


def sources_digest(root: Path) -> str:
    """A digest of the names and contents of all Python files of our packages and benchmarks below ``root``."""
    digest = hashlib.sha256()
    # Names as well as contents: two files that change places are other code.
    for path in sorted(path for folder in _SOURCES for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:_DIGITS]


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on; ``absent`` for one that is not installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    if not device.startswith("cuda"):
        return platform.processor() or "cpu"
    import torch

    return torch.cuda.get_device_name()


def default_path(name: str) -> Path | None:
    """``$OUT/<name>.jsonl``; None where OUT is not set."""
    out = os.environ.get("OUT")
    return Path(out) / f"{name}.jsonl" if out else None


def append(path: Path | None, record: Mapping[str, Any]) -> None:
    """Add a line to ``path``, if there is one; it is on the disk when this returns."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(record) + "\n")
        stream.flush()  # into the file, which fsync then puts on the disk
        os.fsync(stream.fileno())


def read(*paths: Path) -> list[dict[str, Any]]:
    """All records of these files, in order; a last line that was cut off in the middle is left out."""
    records = []
    for path in paths:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        for index, line in enumerate(lines):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                # Each line is synced before the next is begun, so only the last can have been cut off.
                if index + 1 < len(lines):
                    raise
    return records


if __name__ == "__main__":
    print(code())
