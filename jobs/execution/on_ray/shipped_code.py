"""The code that Ray's workers need: our packages, and users' policies with what those import from their own folder.

Source travels and nothing else that lies beside it. What is installed (site-packages) does not: every node has to have it, as
it has torch. Knows no Ray.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

OUR_PACKAGES = ("kvmerger", "evaluators", "jobs")
_SOURCE = (".py", ".pyi")
_OUR_DATA = (".css", ".jinja", ".js", ".json", ".typed", ".yaml")
"""What our own packages hold besides: templates, settings, prompts of benchmarks."""
_OF_AN_ENVIRONMENT = "pyvenv.cfg"
_MAX_BYTES = 100 * 2**20
"""Source code is small; Ray itself gives up at 512 MiB, after packing it all."""


class ShippedCodeError(ValueError):
    """Code that is too large to travel."""


def source_paths(policies: Iterable[str], modules: Mapping[str, ModuleType]) -> tuple[Path, ...]:
    """Files and folders of the code, each importable from its parent.

    `policies` are names as settings spell them, nested presses' too; their parts like `module:Class` count. `modules` is
    `sys.modules` after they were imported: what lies beside a policy's module and was imported too is taken to be needed.

    Raises:
        ShippedCodeError: more than 100 MiB of source in one of them.
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


def code_to_send(paths: Sequence[Path], job_env: Mapping[str, Any], working_dir: Path) -> tuple[Path, ...]:
    """Which of `paths` a cluster that was there before has to be sent.

    `job_env` is the submitted job's own `runtime_env`, empty without a job. It is never overridden: its `working_dir` has
    brought what lies in `working_dir` already, and with `py_modules` or `excludes` the submitter has chosen.
    """
    if "py_modules" in job_env or "excludes" in job_env:
        return ()
    return tuple(
        path for path in paths if "working_dir" not in job_env or not path.is_relative_to(working_dir)
    )


def runtime_env_to_join(copies: Sequence[Path]) -> dict[str, Any]:
    """Ray's `runtime_env` that brings `copies` along, which have to hold nothing else (`source_alone`)."""
    return {"py_modules": [str(path) for path in copies]} if copies else {}


@contextmanager
def source_alone(paths: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Copies of `paths` that hold source and nothing else, each importable from its parent; gone afterwards.

    No keys, data, `.env`, repositories and environments that lie in a package's folder, and no folders that are links. Ray
    knows by the content of copies what its workers have already.
    """
    with tempfile.TemporaryDirectory(prefix="kvmerger-code-") as place:
        copies = []
        for number, path in enumerate(paths):
            # Each in a folder of its own: two may have one name.
            copy = Path(place, str(number), path.name)
            for file in _source_files(path):
                target = copy / file.relative_to(path) if path.is_dir() else copy
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            if copy.exists():
                copies.append(copy)
        yield tuple(copies)


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


def _source_files(path: Path) -> Iterator[Path]:
    """The files of source in a package's folder, in a lasting order; a module's own file."""
    if path.is_file():
        yield path
        return
    endings = (*_SOURCE, *_OUR_DATA) if path.name in OUR_PACKAGES else _SOURCE
    for folder, inner, names in os.walk(path):
        # In place, which `os.walk` obeys. An environment holds source too, of other people.
        inner[:] = sorted(
            it for it in inner if not it.startswith(".") and not Path(folder, it, _OF_AN_ENVIRONMENT).exists()
        )
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and name.endswith(endings) and file.is_file():
                yield file


def _check_size(path: Path) -> None:
    num_bytes = sum(file.stat().st_size for file in _source_files(path))
    if num_bytes > _MAX_BYTES:
        raise ShippedCodeError(
            f"{path} would travel to Ray's workers as code, but holds {num_bytes / 2**20:.0f} MiB of source, more than "
            f"{_MAX_BYTES // 2**20}; name a policy in a smaller package, or install this one on every node"
        )
