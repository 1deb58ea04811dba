"""The code that Ray's workers need: our packages, and users' policies with what those import from their own folder.

What is installed (site-packages) does not travel: every node has to have it, as it has torch. Knows no Ray.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

OUR_PACKAGES = ("kvmerger", "evaluators", "jobs")
_NOT_SOURCE = ["__pycache__", "*.pyc"]  # they differ after every run, and would be sent again each time
_MAX_BYTES = 100 * 2**20
"""Source code is small; Ray itself gives up at 512 MiB, after packing it all."""


class ShippedCodeError(ValueError):
    """Code that is too large to travel."""


def source_paths(policies: Iterable[str], modules: Mapping[str, ModuleType]) -> tuple[Path, ...]:
    """Files and folders of the code, each importable from its parent.

    `policies` are names as settings spell them, nested presses' too; their parts like `module:Class` count. `modules` is
    `sys.modules` after they were imported: what lies beside a policy's module and was imported too is taken to be needed.

    Raises:
        ShippedCodeError: more than 100 MiB in one of them.
    """
    parts = {part for name in policies for part in name.split("+") if ":" in part}
    named = {part.partition(":")[0].partition(".")[0] for part in parts}
    own = {path for name in named - set(OUR_PACKAGES) if (path := _path_of(modules.get(name))) is not None}
    folders = {path.parent for path in own if not _is_installed(path)}
    # A copy, since another thread may import something meanwhile.
    top_level = (
        _path_of(module) for name, module in tuple(modules.items()) if "." not in name and name != "__main__"
    )
    beside = {path for path in top_level if path is not None and path.parent in folders}
    ours = {path for name in OUR_PACKAGES if (path := _path_of(modules.get(name))) is not None}
    # Sorted, since Ray takes another order for another environment, in which no running worker can be used.
    paths = tuple(sorted(beside | ours))
    for path in paths:
        _check_size(path)
    return paths


def runtime_env_to_join(
    paths: Sequence[Path], job_env: Mapping[str, Any], working_dir: Path
) -> dict[str, Any]:
    """Ray's `runtime_env` for a cluster that was there before: it brings the code along as `py_modules`.

    `job_env` is the submitted job's own, empty without a job. It is never overridden: its `working_dir` has brought
    what lies in `working_dir` already, and with `py_modules` or `excludes` the submitter has chosen.
    """
    if "py_modules" in job_env or "excludes" in job_env:
        return {}
    if "working_dir" in job_env:
        paths = [path for path in paths if not path.is_relative_to(working_dir)]
    return {"py_modules": [str(path) for path in paths], "excludes": _NOT_SOURCE} if paths else {}


def runtime_env_to_start(paths: Sequence[Path], python_path: str) -> dict[str, Any]:
    """Ray's `runtime_env` for a Ray of our own on this machine: it finds the code where it is."""
    folders = dict.fromkeys(str(path.parent) for path in paths if not _is_installed(path))
    search = os.pathsep.join([*folders, *([python_path] if python_path else [])])
    return {"env_vars": {"PYTHONPATH": search}} if search else {}


def _path_of(module: ModuleType | None) -> Path | None:
    """A package's folder or a module's `.py` file; None for what has neither."""
    folders = list(getattr(module, "__path__", []))
    if folders:
        return Path(folders[0]).resolve()
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file and file.endswith(".py") else None


def _is_installed(path: Path) -> bool:
    places = {Path(place).resolve() for place in sysconfig.get_paths().values()}
    return any(path.is_relative_to(place) for place in places)


def _check_size(path: Path) -> None:
    files = (
        [path]
        if path.is_file()
        else [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    )
    num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    if num_bytes > _MAX_BYTES:
        raise ShippedCodeError(
            f"{path} would travel to Ray's workers as code, but holds {num_bytes / 2**20:.0f} MiB, more than "
            f"{_MAX_BYTES // 2**20}; keep data and weights outside, or install the package on every node"
        )
