"""Tables of bits per layer: found once for a model by a calibration, checked by their own hash, run by the form `kvtuner`.

A table is JSON: ``model`` (name, revision, dtype), ``items`` (digests of the contexts that calibrated), ``seed``,
``mean_bits`` (the target), ``pairs`` (bits of keys and of values, a pair a layer), ``errors`` (what each pair costs each
layer, as ``{"k8v4": …}``) and ``hash``, of all the others. Among a variant's parameters errors are their digest alone, and
the hash stays the same. No torch here: settings are read without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmerger.names import VariantError

FORM = "kvtuner"
PARAMETER = "table"
WIDTHS = (8, 4, 2)
"""Bits of a stored number that a table may give."""
SHOWN_DIGITS = 8
_KEYS = ("errors", "hash", "items", "mean_bits", "model", "pairs", "seed")
_MODEL_KEYS = ("dtype", "name", "revision")
_REMEDY = "make one with `python jobs/calibrate.py kvtuner CONFIG --out table.json`"


@dataclass(frozen=True, slots=True)
class BitsTable:
    """A table whose hash is right.

    Attributes:
        model_name, revision: the model that was calibrated; the revision names its content.
        items: digests of the contexts that calibrated.
        pairs_L: (bits of keys, bits of values) of every layer.
        content_hash: sha256, 64 hexadecimal digits.
    """

    model_name: str
    revision: str
    items: frozenset[str]
    pairs_L: tuple[tuple[int, int], ...]
    content_hash: str

    @property
    def mean_bits(self) -> float:
        """Mean bits of a stored number, over layers, keys and values; scales apart."""
        return sum(map(sum, self.pairs_L)) / (2 * len(self.pairs_L))

    def refusal(self, revision: str, num_layers: int) -> str | None:
        """Why a model of this revision and depth cannot run it; None where it can."""
        calibrate = "calibrate that model with `python jobs/calibrate.py kvtuner CONFIG`"
        if len(self.pairs_L) != num_layers:
            return f"the table is of {len(self.pairs_L)} layers, and the model has {num_layers}; {calibrate}"
        if self.revision != revision:
            return f"the table is of {self.model_name} at {self.revision}, and the model is at {revision}; {calibrate}"
        return None


def pair_name(bits_k: int, bits_v: int) -> str:
    """What a pair of bits is called: ``k8v4``."""
    return f"k{bits_k}v{bits_v}"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` of a table, with its hash."""
    return {**content, "hash": content_hash(content)}


def content_hash(content: Mapping[str, Any]) -> str:
    """sha256 of all but the hash itself; the same whether errors are written out or are their digest."""
    return _digest({key: value for key, value in _short(content).items() if key != "hash"})


def checked(content: object) -> BitsTable:
    """The table that ``content`` holds, as a file has it or as it stands among parameters.

    Raises:
        VariantError: it is none, or was changed since it was made.
    """
    if isinstance(content, str):
        raise VariantError(
            f"{FORM}: the table {content!r} was not read; a settings file reads it, and Python by "
            f"kvmerger.bits_table.read_table"
        )
    if content == {}:
        raise VariantError(
            f"{FORM} needs a table, as in {{name: {FORM}, {PARAMETER}: table.json}}; {_REMEDY}"
        )
    if not isinstance(content, Mapping) or sorted(map(str, content)) != list(_KEYS):
        raise VariantError(f"{FORM}: a table has the keys {', '.join(_KEYS)}; {_REMEDY}")
    model, pairs, items = content["model"], content["pairs"], content["items"]
    if not isinstance(model, Mapping) or sorted(map(str, model)) != list(_MODEL_KEYS):
        raise VariantError(f"{FORM}: a table's model has {', '.join(_MODEL_KEYS)}; {_REMEDY}")
    if not _is_list(pairs) or not pairs or not all(map(_is_pair, pairs)):
        raise VariantError(
            f"{FORM}: a table's pairs are bits of keys and of values for every layer, each one of {WIDTHS}; {_REMEDY}"
        )
    if not _is_list(items) or not all(isinstance(item, str) for item in items):
        raise VariantError(f"{FORM}: a table's items are digests of contexts; {_REMEDY}")
    found = content_hash(content)
    if content["hash"] != found:
        raise VariantError(
            f"{FORM}: the table was changed since it was made: its hash is {content['hash']!r:.80}, and its content has "
            f"{found!r}; {_REMEDY}"
        )
    pairs_L = tuple((int(bits_k), int(bits_v)) for bits_k, bits_v in pairs)
    return BitsTable(str(model["name"]), str(model["revision"]), frozenset(items), pairs_L, found)


def read_table(path: Path) -> dict[str, Any]:
    """The content of a table's file as it stands among a variant's parameters, checked.

    Raises:
        VariantError: no such file, no JSON, no table, or one that was changed since it was made.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VariantError(
            f"{FORM}: cannot read the table {str(path)!r}: {error.strerror}; {_REMEDY}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise VariantError(f"{FORM}: the table {str(path)!r} is no JSON: {error}; {_REMEDY}") from error
    try:
        checked(content)
    except VariantError as error:
        raise VariantError(f"{error} ({path})") from error
    return _short(content)


def table_of(policy: str, params: Sequence[tuple[str, Any]]) -> BitsTable | None:
    """The table that a variant of this policy and these parameters runs; None where its form is another.

    Raises:
        VariantError: see `checked`.
    """
    if FORM not in policy.split("+"):
        return None
    found = dict(params)
    content = found.get(PARAMETER, found.get(f"{FORM}.{PARAMETER}"))
    return None if content is None else checked(content)


def _short(content: Mapping[str, Any]) -> dict[str, Any]:
    errors = content.get("errors")
    return {**content, "errors": errors if isinstance(errors, str) else _digest(errors)}


def _digest(value: Any) -> str:
    # JSON has no tuples: as lists, a file's content and that of parameters have one digest.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _is_pair(value: Any) -> bool:
    # A float equals its whole number, and True is 1.
    return _is_list(value) and len(value) == 2 and all(type(it) is int and it in WIDTHS for it in value)
