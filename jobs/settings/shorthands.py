"""Settings that people write in a word, as the sections and lists that they stand for; what is no such word stays."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

# YAML reads them as true and false without quotes, and as text in them.
_SWITCHES = {"off": False, "no": False, "false": False, "none": False, "on": True, "yes": True, "true": True}
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def written_out(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with sections and lists for `model: NAME`, `actors: 2`, `tracking: ADDRESS` or `"off"`, and `policies: A,B`."""
    return {key: _WRITTEN_OUT.get(key, _as_it_is)(value) for key, value in raw.items()}


def _model(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) and value else value


def _actors(value: Any) -> Any:
    # Not isinstance, since a bool is an int.
    return {"count": value} if type(value) is int else value


def _tracking(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"uri": value} if _ADDRESS.match(value) else _SWITCHES.get(value.casefold(), value)


def _policies(value: Any) -> Any:
    # As they are typed behind `--set policies=`; no name has a comma.
    return [name.strip() for name in value.split(",")] if isinstance(value, str) and value else value


def _as_it_is(value: Any) -> Any:
    return value


_WRITTEN_OUT: dict[str, Callable[[Any], Any]] = {
    "actors": _actors,
    "model": _model,
    "policies": _policies,
    "tracking": _tracking,
}
