"""A settings file is read whole or refused in one line that names it, the place and the remedy.

`--set a.b=value` changes one setting as the file spells it, before anything is checked.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jobs.settings.errors import SettingsError, nearest_file

SHIPPED_CONFIGS = Path(__file__).parents[1] / "configs"
_ENDINGS = (".yaml", ".yml")
_INDEX = re.compile(r"\[(-?\d+)\]")


class _RepeatedKeyError(ValueError):
    """One key stands in two lines of a mapping."""


class _UniqueKeyLoader(yaml.SafeLoader):
    # YAML itself takes the last of two equal keys and says nothing.
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                continue  # YAML's own complaint follows
            if key in lines:
                where = f"lines {lines[key]} and {line}" if line != lines[key] else f"line {line}"
                raise _RepeatedKeyError(f"the key {key!r} is there twice, in {where}")
            lines[key] = line
        return super().construct_mapping(node, deep)


def shipped_names() -> list[str]:
    """What the shipped settings are called where no file is meant: their names without an ending."""
    return [Path(name).stem for name in _yaml_names(SHIPPED_CONFIGS)]


def first_words(name: str) -> str:
    """The first sentence of the comment that shipped settings begin with."""
    lines = (SHIPPED_CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    words = " ".join(
        it.removeprefix("#").strip() for it in itertools.takewhile(lambda it: it.startswith("#"), lines)
    )
    return re.split(r"(?<=[.?])\s", words, maxsplit=1)[0]


def settings_file(path: Path) -> Path:
    """The file that `path` names: itself, or by a bare name (`nightly`, `nightly.yaml`) one here, or a shipped one.

    `path` itself is returned where there is none of them.
    """
    if path.is_file() or path.name != str(path):
        return path
    names = [path] if path.suffix else [Path(f"{path}{ending}") for ending in _ENDINGS]
    # A user's own go first. A folder of that name is no settings file, and hides none.
    places = [*(names if not path.suffix else ()), *(SHIPPED_CONFIGS / name for name in names)]
    return next((place for place in places if place.is_file()), path)


def read_settings_file(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        SettingsError: no such file, a folder, no UTF-8, no YAML, a key twice, or no keys at all.
    """
    text = _read_text(path)
    try:
        raw = parsed(text, _UniqueKeyLoader)
    except _RepeatedKeyError as error:
        raise SettingsError(f"{path}: {error}; keep one") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {yaml_fault(error)}") from error
    if not isinstance(raw, dict):
        raise SettingsError(f"{path} should hold keys and values, got {raw!r}")
    return raw


def parsed(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """What a YAML text holds; whatever is wrong with it is a `yaml.YAMLError`, or the loader's own error.

    PyYAML itself raises all sorts for dates that are none, numbers of too many digits, nesting too deep and wrong tags.
    """
    try:
        value = yaml.load(text, Loader=loader)
        # An escape may name one, and neither a file nor an address could take it.
        if "\\u" in text.lower() and _has_half_a_character(value):
            raise yaml.YAMLError("\\ud800 to \\udfff are halves of a character; write the character itself")
        return value
    except (yaml.YAMLError, _RepeatedKeyError):
        raise
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise yaml.YAMLError(
            f"a value cannot be read ({type(error).__name__}: {error}); put it in quotes"
        ) from error


def _has_half_a_character(value: Any) -> bool:
    match value:
        case str():
            return any("\ud800" <= sign <= "\udfff" for sign in value)
        case dict():
            return any(map(_has_half_a_character, (*value.keys(), *value.values())))
        case list() | tuple():
            return any(map(_has_half_a_character, value))
    return False


def yaml_fault(error: yaml.YAMLError) -> str:
    """What YAML found wrong and where, in one line."""
    # Its own message takes several: the text with a caret below.
    match error:
        case yaml.MarkedYAMLError(problem_mark=yaml.Mark() as mark):
            what = ", ".join(part for part in (error.context, error.problem) if part)
            return f"{what} (line {mark.line + 1}, column {mark.column + 1})"
        case yaml.reader.ReaderError():
            return f"{error.reason} (character {error.position + 1})"
    return str(error)


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `raw` with each `path=value` put in, in order; `raw` itself is not changed.

    A path is keys and list indexes joined by dots (`tasks.0.limit`, `tasks[0].limit`); the value is read as
    YAML. Sections that are missing or null are made; whether a key is known is for the settings to say.

    Raises:
        SettingsError: no `=`, broken YAML, an index outside its list, or a path through what has no keys.
    """
    # Deep: `_put` writes into sections and lists.
    changed = copy.deepcopy(dict(raw))
    for override in overrides:
        # At the first "=", since values may hold more.
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


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"cannot read settings from {str(path)!r}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from error
    except IsADirectoryError as error:
        inside = ", ".join(_yaml_names(path))
        raise SettingsError(
            f"{str(path)!r} is a folder, not a settings file; name a file in it{inside and f': {inside}'}"
        ) from error
    except FileNotFoundError as error:
        names = _yaml_names(path.parent)
        # A bare name may be that of shipped settings.
        near = nearest_file(path, names + (_yaml_names(SHIPPED_CONFIGS) if path.name == str(path) else []))
        raise SettingsError(
            f"there is no settings file {str(path)!r}{near}; shipped: {', '.join(_yaml_names(SHIPPED_CONFIGS))}"
        ) from error
    except OSError as error:
        raise SettingsError(f"cannot read settings from {str(path)!r}: {error.strerror}") from error


def _yaml_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.glob("*.y*ml"))


def _read_value(text: str, override: str) -> Any:
    try:
        return parsed(text)
    except yaml.YAMLError as error:
        raise SettingsError(
            f"--set {override!r}: the value {text!r} is not valid YAML: {yaml_fault(error)}"
        ) from error


def _put(raw: dict[str, Any], parts: Sequence[str], value: Any, override: str) -> None:
    target: Any = raw
    for done, part in enumerate(parts[:-1], start=1):
        key = _key_of(target, part, parts[: done - 1], override)
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = {}  # a section left empty in the file is null
        target = target[key]
    target[_key_of(target, parts[-1], parts[:-1], override)] = value


def _key_of(target: Any, part: str, path: Sequence[str], override: str) -> str | int:
    """The key or index under which `part` is found in `target`, which is found at `path`."""
    if isinstance(target, dict):
        return part
    where = ".".join(path)
    if not isinstance(target, list):
        raise SettingsError(
            f"--set {override!r}: {where} is {target!r}, which has no keys; "
            f"write --set '{where}={{{part}: …}}'"
        )
    if not re.fullmatch(r"-?\d{1,9}", part) or not -len(target) <= int(part) < len(target):
        raise SettingsError(
            f"--set {override!r}: {where} is a list; give an index from 0 to {len(target) - 1}, not {part!r}"
        )
    return int(part)
