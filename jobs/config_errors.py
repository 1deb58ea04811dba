"""A settings mistake is told by its key, the value that came and what would be right, never by a stack trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from kvmerger.variants import nearest


class SettingsError(ValueError):
    """Settings that cannot be used. The message names the key or file, the value and the remedy."""


# Keys are short and few: a bolder guess than for policies is still mostly right.
_CUTOFF = 0.5


def nearest_name(name: object, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name closest to `name`, or an empty string."""
    return nearest(name, known, cutoff=_CUTOFF)


def explain(error: ValidationError, models: Mapping[tuple[str, ...], type[BaseModel]], source: str) -> str:
    """Turn pydantic's report into one line per mistake.

    `models` maps a section's path (list indexes left out) to its model, so that an unknown key can be compared
    with the section's own keys.
    """
    entries = error.errors(include_url=False)
    # A list whose only element is wrong is reported as empty too; that says nothing new.
    told = [entry for entry in entries if entry["type"] != "too_short" or not entry["input"]] or entries
    lines = [_explain_one(entry, models) for entry in told]
    return (
        "\n".join([f"{source}:", *(f"  {line}" for line in lines)])
        if len(lines) > 1
        else f"{source}: {lines[0]}"
    )


def _explain_one(entry: Any, models: Mapping[tuple[str, ...], type[BaseModel]]) -> str:
    location: tuple[str | int, ...] = entry["loc"]
    key = ".".join(str(part) for part in location)
    section = models.get(tuple(part for part in location[:-1] if isinstance(part, str)))
    known = sorted(section.model_fields) if section else []
    match entry["type"]:
        case "extra_forbidden":
            return f"unknown key {key!r}{nearest_name(location[-1], known)}; known here: {', '.join(known)}"
        case "missing":
            return f"{key!r} is missing"
        case "value_error":
            return f"{key}: {entry['ctx']['error']}" if key else str(entry["ctx"]["error"])
        case "literal_error" | "enum":
            expected = entry["ctx"]["expected"]
            allowed = [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]
            return (
                f"{key}: {entry['input']!r} is not one of {expected}{nearest_name(entry['input'], allowed)}"
            )
        case "string_type":
            return f"{key}: should be text, got {entry['input']!r}; put it in quotes"
    return f"{key}: {entry['msg'].replace('Input should', 'should')}, got {entry['input']!r}"
