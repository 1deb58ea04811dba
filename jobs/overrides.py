"""`--set a.b=value`: one change to the settings as the file spells them, before anything is checked."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from jobs.config_errors import SettingsError
from jobs.settings_file import yaml_fault

_INDEX = re.compile(r"\[(-?\d+)\]")


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `raw` with each `path=value` put in, in order; `raw` itself is not changed.

    A path is keys and list indexes joined by dots (`tasks.0.limit`, `tasks[0].limit`); the value is read as
    YAML. Sections that are missing or null are made; whether a key is known is for the settings to say.

    Raises:
        SettingsError: no `=`, broken YAML, an index outside its list, or a path through what has no keys.
    """
    changed = copy.deepcopy(dict(raw))
    for override in overrides:
        parts, (_, is_assignment, text) = path_of(override), override.partition("=")
        if not is_assignment or not parts:
            raise SettingsError(
                f"--set {override!r} is not of the form key.key=value, such as tasks.0.limit=3"
            )
        _put(changed, parts, _read_value(text, override), override)
    return changed


def path_of(override: str) -> tuple[str, ...]:
    """The keys and indexes that lead to what an override changes: ("tasks", "0", "limit")."""
    path = override.partition("=")[0]
    return tuple(part for part in _INDEX.sub(r".\1", path.strip()).split(".") if part)


def _read_value(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(
            f"--set {override!r}: the value {text!r} is not valid YAML: {yaml_fault(error)}"
        ) from error


def _put(raw: dict[str, Any], parts: Sequence[str], value: Any, override: str) -> None:
    target: Any = raw
    for done, part in enumerate(parts[:-1], start=1):
        key = _key_of(target, part, parts[: done - 1], override)
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = {}
        target = target[key]
    target[_key_of(target, parts[-1], parts[:-1], override)] = value


def _key_of(target: Any, part: str, path: Sequence[str], override: str) -> str | int:
    """The key under which `part` is found in `target`, which lies at `path`."""
    if isinstance(target, dict):
        return part
    where = ".".join(path)
    if not isinstance(target, list):
        raise SettingsError(
            f"--set {override!r}: {where} is {target!r}, which has no keys; "
            f"write --set '{where}={{{part}: …}}'"
        )
    if not re.fullmatch(r"-?\d+", part) or not -len(target) <= int(part) < len(target):
        raise SettingsError(
            f"--set {override!r}: {where} is a list; give an index from 0 to {len(target) - 1}, not {part!r}"
        )
    return int(part)
