"""Tables of bits that policies name by a file: their content takes the path's place when settings are read.

So it is part of what a variant is, is stored with the results, and needs no file on the machines that run it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.console.paths import local_path
from jobs.settings.errors import nearest_file
from kvmerger.bits_table import FORM, PARAMETER, read_table
from kvmerger.names import VariantError

_KEYS = (PARAMETER, f"{FORM}.{PARAMETER}")


def with_tables(policies: Sequence[Any], folders: Sequence[Path]) -> list[Any]:
    """`policies` as settings list them, with every table that is a path read, from the first of `folders` that has it.

    Raises:
        VariantError: no such file, or no table that can be used.
    """
    return [_with_table(entry, folders) for entry in policies]


def _with_table(entry: Any, folders: Sequence[Path]) -> Any:
    if not isinstance(entry, dict) or not _is_of_tables(entry.get("name")):
        return entry
    paths = {key: entry[key] for key in _KEYS if isinstance(entry.get(key), str)}
    return {**entry, **{key: read_table(_found(path, folders)) for key, path in paths.items()}}


def _is_of_tables(name: Any) -> bool:
    return isinstance(name, str) and FORM in re.split(r"[+@]", name)


def _found(path: str, folders: Sequence[Path]) -> Path:
    wanted = local_path(path)
    for folder in folders:
        if (folder / wanted).is_file():
            return folder / wanted
    near = nearest_file(
        wanted, (it.name for folder in folders for it in (folder / wanted).parent.glob("*.json"))
    )
    raise VariantError(
        f"{FORM}: there is no table {path!r}{near}; looked in {' and in '.join(map(str, folders))}; make one with `python "
        f"jobs/calibrate.py kvtuner CONFIG --out {path}`"
    )
