"""Parameters that are mappings or lists, such as a nested press: hashable, and spelt as the file that they come from.

No torch here: settings are read without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Nested(dict[str, Any]):
    """A mapping among parameters. Never changed once it is made: it is a key, and part of what a variant is."""

    # A dict all the same: JSON, YAML and pickle take it as one.
    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def frozen(value: Any) -> Any:
    """``value`` as YAML gives it, with tuples for lists and `Nested` for mappings."""
    if isinstance(value, list):
        return tuple(map(frozen, value))
    if isinstance(value, Mapping):
        return Nested({str(key): frozen(it) for key, it in value.items()})
    return value


def names_in(value: Any) -> Iterator[str]:
    """Every ``name`` of a mapping in ``value``, as of a press inside another, at any depth."""
    if isinstance(value, Mapping):
        if isinstance(name := value.get("name"), str):
            yield name
        value = tuple(value.values())
    if isinstance(value, tuple):
        for it in value:
            yield from names_in(it)


def top_module(path: str) -> str:
    """``package`` of a ``package.module:Class``."""
    return path.partition(":")[0].partition(".")[0]
