"""Errors of policy entries: a name that cannot be understood, with the nearest there is, and a form that cannot be used."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_PRESS = re.compile(r"(?<=[a-z0-9])press(?![a-z0-9])")
"""What kvpress's classes end in: `SnapKVPress` is `snapkv` here."""


class VariantError(ValueError):
    """A policy entry that cannot be understood, or parameters the policy does not have."""


class FormError(ValueError):
    """A form that does not exist, that cannot store heads of this size, or whose answers mean nothing."""


def words_of_path(path: str) -> tuple[str, str]:
    """Module and class of a ``module:Class``.

    Raises:
        VariantError: one of them has no name, or the module is written as a file's path.
    """
    module, _, name = path.partition(":")
    file = re.split(r"[\\/]", module)[-1]
    stem = file.removesuffix(".py")
    if stem != module and stem.strip(".") and name:
        where = "" if file == module else ", and put its folder on PYTHONPATH, or the settings beside it"
        raise VariantError(
            f"{path!r} is a file, which is named without its folder and ending: write {f'{stem}:{name}'!r}{where}"
        )
    if not (name and all(module.split("."))):
        raise VariantError(
            f"{path!r} names no class: write the file's name before it, as in my_module:MyClass"
        )
    return module, name


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" (did you mean 'x'?)"`` for the known name closest to ``name``, or ``""``; a lower ``cutoff`` (0–1) guesses more.

    Capitals, ``_``, ``-`` and kvpress's ``Press`` count only between known names that differ in nothing else.
    """
    by_folded: dict[str, list[str]] = {}
    for it in known:
        by_folded.setdefault(folded(it), []).append(it)
    close = difflib.get_close_matches(folded(str(name)), by_folded, n=1, cutoff=cutoff)
    if not close:
        return ""
    (best,) = difflib.get_close_matches(str(name), by_folded[close[0]], n=1, cutoff=0.0)
    return f" (did you mean {best!r}?)"


def folded(name: str) -> str:
    """``name`` without what people write differently from project to project: capitals, ``_``, ``-`` and ``Press``."""
    return re.sub("[_-]", "", _PRESS.sub("", name.casefold()))
