"""Messages about mistakes in settings: each names the key, the value that came and what would be right."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

# Keys are short and few: a bolder guess than for policies is still mostly right.
_KEY_CUTOFF = 0.5
_MAX_NEAR_TASKS = 3
_ALL_OF = {key: f"; `sweep.py ls {key}` shows all" for key in ("policies", "tasks")}
_SET = "--set"
_FLAGS = {"output_dir": "--output_dir"}
"""Settings that people give by a flag of their own rather than by `--set`."""

# What pydantic calls by Python's names, in a user's words.
_SHOULD_BE = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "keys and values",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "model_type": "keys and values",
    "path_type": "a path, as text",
    "string_type": "text",
    "tuple_type": "a list",
}
# Sections that are understood as a word or number too.
_ALSO_TAKES = {
    "actors": "a number of actors, or keys and values",
    "model": "a name, or keys and values",
    "policies": "names, or a list",
    "tracking": "`off`, an address, or keys and values",
}
_TEXTS = {"path_type", "string_type"}


class SettingsError(ValueError):
    """Settings that cannot be used. The message names the key or file, the value and the remedy."""


def nearest_name(name: object, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name closest to `name`, or an empty string."""
    return _did_you_mean(difflib.get_close_matches(str(name), list(known), n=1, cutoff=_KEY_CUTOFF))


def nearest_file(path: Path, names: Iterable[str]) -> str:
    """As `nearest_name`, for a file or folder that is missing among those called `names`; a folder holds anything."""
    # By stems, since a shared ending makes short names look alike; of equal ones that with the same ending.
    name_of = {Path(name).stem: name for name in sorted(names, key=lambda it: Path(it).suffix == path.suffix)}
    return _did_you_mean([name_of[stem] for stem in difflib.get_close_matches(path.stem, name_of, n=1)])


def unknown_task(name: str, known: Sequence[str]) -> str:
    """That there is no such task, which ones have a name like it, and where all are listed."""
    near = [task for task in known if task.rpartition("/")[2] == name]
    near = near or difflib.get_close_matches(name, known, n=_MAX_NEAR_TASKS, cutoff=_KEY_CUTOFF)
    return f"there is no task {name!r}{_did_you_mean(near)}{_ALL_OF['tasks']}"


def _did_you_mean(near: Sequence[str]) -> str:
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def explain(
    error: ValidationError,
    models: Mapping[tuple[str, ...], type[BaseModel]],
    source: str,
    set_paths: Sequence[tuple[str, ...]] = (),
) -> str:
    """Turn pydantic's report into one line per mistake.

    `models` maps a section's path (list indexes left out) to its model, so that an unknown key can be compared
    with the section's own keys. `set_paths` are what the command line changed: a mistake there is not the file's.
    """
    entries = error.errors(include_url=False)
    # A list whose only element is wrong is reported as empty too; that says nothing new.
    told = [entry for entry in entries if entry["type"] != "too_short" or not entry["input"]] or entries
    by_origin: dict[str, list[str]] = {}
    for entry in told:
        key, text = _explain_one(entry, models)
        origin = _origin(entry["loc"], source, set_paths)
        if origin == _SET and key:
            origin = _FLAGS.get(key, f"{_SET} {key}")
        elif key:
            text = f"{key}: {text}"
        by_origin.setdefault(origin, []).append(text)
    return "\n".join(
        "\n".join([f"{origin}:", *(f"  {text}" for text in texts)])
        if len(texts) > 1
        else f"{origin}: {texts[0]}"
        for origin, texts in by_origin.items()
    )


def _origin(location: Sequence[str | int], source: str, set_paths: Sequence[tuple[str, ...]]) -> str:
    """Where a wrong value was written: in the file, on the command line, or in part there."""
    path = tuple(map(str, location))
    if any(path[: len(it)] == it for it in set_paths):
        return _SET
    inside = [".".join(it) for it in set_paths if it[: len(path)] == path]
    return f"{source} with {_SET} {', '.join(inside)}" if inside else source


def _explain_one(entry: Any, models: Mapping[tuple[str, ...], type[BaseModel]]) -> tuple[str, str]:
    """The key and what is wrong with it; without a key when the sentence names it, or the fault is of several."""
    location: tuple[str | int, ...] = entry["loc"]
    key, kind, value = ".".join(str(part) for part in location), entry["type"], entry["input"]
    section = models.get(tuple(part for part in location[:-1] if isinstance(part, str)))
    known = sorted(section.model_fields) if section else []
    match kind:
        case "extra_forbidden":
            near = nearest_name(location[-1], known)
            return "", f"unknown key {key!r}{near}; known here: {', '.join(known)}"
        case "missing":
            return "", f"{key!r} is missing"
        case "value_error":
            return key, str(entry["ctx"]["error"])
        case "literal_error" | "enum":
            expected = entry["ctx"]["expected"]
            allowed = [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]
            return key, f"{value!r} is not one of {expected}{nearest_name(value, allowed)}"
        case "too_short":
            return key, f"at least one is needed, got {value!r}{_ALL_OF.get(key, '')}"
        case "string_too_short":
            return key, f"should be text of at least one letter, got {value!r}"
    if kind not in _SHOULD_BE:
        return key, f"{entry['msg'].replace('Input should', 'should')}, got {value!r}"
    remedy = _remedy(kind, value, _has_default(section, location))
    should_be = _ALSO_TAKES.get(key, _SHOULD_BE[kind])
    return key, f"should be {should_be}, got {_shown(value)}{remedy}"


def _shown(value: Any) -> str:
    """The value as it was written, not as Python shows it."""
    return str(value) if isinstance(value, datetime.date) else repr(value)


def _has_default(section: type[BaseModel] | None, location: Sequence[str | int]) -> bool:
    """Whether the key may be left out; nowhere means the whole file, which may not."""
    field = section.model_fields.get(str(location[-1])) if section and location else None
    return field is not None and not field.is_required()


def _remedy(kind: str, value: Any, has_default: bool) -> str:
    if value is None and has_default:
        return "; leave the key out for its default"
    if kind in _TEXTS and isinstance(value, int | float | datetime.date):
        return "; put it in quotes"
    if kind == "tuple_type":
        return f"; write [{value}]" if isinstance(value, str) and value else ""
    return ""
