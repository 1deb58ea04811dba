"""A settings file is read whole or refused in one line that names it, the place and the remedy.

YAML itself lets the last of two equal keys win in silence; here that is an error.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from jobs.config_errors import SettingsError, nearest_file

SHIPPED_CONFIGS = Path(__file__).parent / "configs"


def read_settings_file(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        SettingsError: no such file, a folder, no UTF-8, no YAML, a key twice, or no keys at all.
    """
    text = _read_text(path)
    try:
        raw = yaml.load(text, Loader=_UniqueKeyLoader)
    except _RepeatedKeyError as error:
        raise SettingsError(f"{path}: {error}; keep one") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {yaml_fault(error)}") from error
    if not isinstance(raw, dict):
        raise SettingsError(f"{path} should hold keys and values, got {raw!r}")
    return raw


def yaml_fault(error: yaml.YAMLError) -> str:
    """What YAML found wrong and where, in one line: its own message shows the text with a caret below."""
    match error:
        case yaml.MarkedYAMLError(problem_mark=yaml.Mark() as mark):
            what = ", ".join(part for part in (error.context, error.problem) if part)
            return f"{what} (line {mark.line + 1}, column {mark.column + 1})"
        case yaml.reader.ReaderError():
            return f"{error.reason} (character {error.position + 1})"
    return str(error)


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
        near = nearest_file(path, _yaml_names(path.parent))
        raise SettingsError(
            f"there is no settings file {str(path)!r}{near}; shipped: {', '.join(_yaml_names(SHIPPED_CONFIGS))}"
        ) from error
    except OSError as error:
        raise SettingsError(f"cannot read settings from {str(path)!r}: {error.strerror}") from error


def _yaml_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.glob("*.y*ml"))


class _RepeatedKeyError(ValueError):
    """One key stands in two lines of a mapping."""


class _UniqueKeyLoader(yaml.SafeLoader):
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
