"""Which rows of two results may be paired: differences that would make a pair wrong are refused, others are listed.

Pure over result rows. A and B must share model, revision, dtype and query mode, and ask and score each common item alike.
Versions, device, execution, seed and a policy's settings may differ: they can be what the comparison is about.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.results.schema import DONE_STATUSES, Row
from kvmerger.variants import FULL

_MAX_SHOWN_CHARS = 60  # gold answers have any length
_KEY_COLUMNS = {"model": "model", "query_mode": "query mode"}
_RUN_COLUMNS = {"model_revision": "model revision", "dtype": "dtype"}
GATE_RUN_COLUMNS = {**_RUN_COLUMNS, "attention": "attention backend"}
"""What must be alike where a difference may only come from the code."""
_ITEM_COLUMNS = {
    "metric": "scorer",
    "scorer": "scorer's version",
    "answers": "gold answers",
    "cluster_id": "context",
    "context_tokens": "context tokens",
    "tail_tokens": "tail tokens",
    "prompt_digest": "prompt or answer length",
}
_TOLD_COLUMNS = {
    "device": "device",
    "device_name": "device's name",
    "attention": "attention backend",
    "layers": "decoder layers by",
    "execution": "execution",
    "seed": "seed",
}
# Null in rows of older versions, and before a run where the machine decides: a null differs from nothing.
_NOT_ALWAYS_KNOWN = {"attention", "layers", "prompt_digest", "scorer", "form", "bits_k", "bits_v"}
# Rows of older versions do not tell it, and a device that nobody knows is not known to be the same one.
_UNKNOWN_IS_OTHER = {"device_name"}
_POLICY_COLUMNS = {"policy_version": "version", "policy_params": "parameters", "budget_asked": "budget"}
_FORM_COLUMNS = {"form": "stored as"}
_BITS_COLUMNS = {"bits_k": "bits of keys", "bits_v": "bits of values"}
HEAVY_COLUMNS = ("answers", "versions")
"""What is read here beyond the columns that summaries need."""
RunKey = tuple[str, str]
Names = tuple[str, str]


class ComparisonError(ValueError):
    """Two results cannot be paired. The message says in what they differ, or what there is instead."""


def run_key(row: Row) -> RunKey:
    """(query mode, model): rows in which these differ are never paired. Failed rows have them too."""
    return row["query_mode"], row["model"]


def check_comparable(
    rows_a: Sequence[Row],
    rows_b: Sequence[Row],
    names: Names = ("A", "B"),
    run_columns: Mapping[str, str] = _RUN_COLUMNS,
) -> frozenset[RunKey]:
    """The keys both results have, with everything else that pairs depend on alike.

    `names` are what the two are called; `run_columns` (column → its name) must be alike in whole results.

    Raises:
        ComparisonError: no rows, no common key or item, or the list of what differs.
    """
    for name, rows in zip(names, (rows_a, rows_b), strict=True):
        if not any(row["status"] in DONE_STATUSES for row in rows):
            raise ComparisonError(f"{name} has no finished rows.")
    keys = {run_key(row) for row in rows_a} & {run_key(row) for row in rows_b}
    if not keys:
        raise _refusal(_differing(rows_a, rows_b, {**_KEY_COLUMNS, **run_columns}, names), names)
    found: list[str] = []
    # Only under common keys: rows of a model that one result has alone are left out later, not refused here.
    for key in sorted(keys):
        done_a, done_b = _finished(rows_a, key), _finished(rows_b, key)
        found += _differing(done_a, done_b, run_columns, names)
        found += _differing_items(done_a, done_b, names)
    if found:
        raise _refusal(found, names)
    items_a, items_b = ({row["item_id"] for row in rows} for rows in (rows_a, rows_b))
    if not items_a & items_b:
        first = [
            f"{name} has {min(items)!r} …" for name, items in zip(names, (items_a, items_b), strict=True)
        ]
        raise ComparisonError(f"no item is in both: {', '.join(first)}.")
    return frozenset(keys)


def differences_to_tell(
    rows_a: Sequence[Row], rows_b: Sequence[Row], names: Names = ("A", "B")
) -> tuple[str, ...]:
    """A sentence for everything else that differs: versions, machine, a policy's settings, or the engine's version."""
    done_a, done_b = ([row for row in rows if row["status"] in DONE_STATUSES] for rows in (rows_a, rows_b))
    told = _differing(done_a, done_b, _TOLD_COLUMNS, names)
    versions_a, versions_b = _versions(done_a), _versions(done_b)
    for package in sorted(versions_a.keys() | versions_b.keys()):
        mine, other = versions_a.get(package, "-"), versions_b.get(package, "-")
        if mine != other:
            told.append(f"{package}: {mine} in {names[0]}, {other} in {names[1]}")
    labels = dict.fromkeys(row["variant"] for row in done_a)
    for label in labels:
        of_a, of_b = ([row for row in rows if row["variant"] == label] for rows in (done_a, done_b))
        if of_b:
            differing = _differing(of_a, of_b, _POLICY_COLUMNS, names)
            told += [f"{label}, {it}" for it in (*differing, *stored_differently(of_a, of_b, names))]
    # An identity covers versions and settings too: where those are told already, it says nothing new.
    if not told and _has_other_identities(done_a, done_b):
        told.append("the full rows have other identities: answer length, prompt text or engine differ")
    return tuple(told)


def _refusal(differences: Iterable[str], names: Names) -> ComparisonError:
    lines = "".join(f"\n  {it}" for it in differences)
    return ComparisonError(f"{names[0]} and {names[1]} cannot be paired, they differ in{lines}")


def stored_differently(rows_a: Sequence[Row], rows_b: Sequence[Row], names: Names) -> list[str]:
    """A sentence where two variants' rows have another form, or of one form other bits; null differs from nothing."""
    done_a, done_b = ([row for row in rows if row["status"] in DONE_STATUSES] for rows in (rows_a, rows_b))
    # Another form says already that its bits are others.
    return _differing(done_a, done_b, _FORM_COLUMNS, names) or _differing(
        done_a, done_b, _BITS_COLUMNS, names
    )


def _finished(rows: Sequence[Row], key: RunKey) -> list[Row]:
    return [row for row in rows if row["status"] in DONE_STATUSES and run_key(row) == key]


def _differing(
    rows_a: Sequence[Row], rows_b: Sequence[Row], columns: Mapping[str, str], names: Names
) -> list[str]:
    """A sentence for every column whose set of values is not the same."""
    found = []
    for column, name in columns.items():
        in_a, in_b = (sorted({_text_of(column, row) for row in rows}) for rows in (rows_a, rows_b))
        is_unknown = column in _NOT_ALWAYS_KNOWN and ["None"] in (in_a, in_b)
        if rows_a and rows_b and in_a != in_b and not is_unknown:
            found.append(f"{name}: {_shown(in_a)} in {names[0]}, {_shown(in_b)} in {names[1]}")
    return found


def _text_of(column: str, row: Row) -> str:
    # As text, so that numbers, lists and nulls sort together; a null is "None" from here on.
    return "unknown" if row[column] is None and column in _UNKNOWN_IS_OTHER else str(row[column])


def _differing_items(rows_a: Sequence[Row], rows_b: Sequence[Row], names: Names) -> list[str]:
    """A sentence for every column in which common items differ, with one of them."""
    by_item_a, by_item_b = ({row["item_id"]: row for row in rows} for rows in (rows_a, rows_b))
    common = sorted(by_item_a.keys() & by_item_b.keys())
    found = []
    for column, name in _ITEM_COLUMNS.items():
        differ = [it for it in common if _is_other(column, by_item_a[it], by_item_b[it])]
        if differ:
            values = (_shown([str(rows[differ[0]][column])]) for rows in (by_item_a, by_item_b))
            found.append(
                f"{name} of {len(differ)} of {len(common)} common items, as {differ[0]}: "
                + f" in {names[0]}, ".join(values)
                + f" in {names[1]}"
            )
    return found


def _is_other(column: str, row_a: Row, row_b: Row) -> bool:
    is_unknown = column in _NOT_ALWAYS_KNOWN and None in (row_a[column], row_b[column])
    return row_a[column] != row_b[column] and not is_unknown


def _has_other_identities(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> bool:
    """Whether rows of the full cache on the same item have different identities, hence were asked something else."""
    full_a, full_b = (
        {row["item_id"]: row["identity"] for row in rows if row["variant"] == FULL}
        for rows in (rows_a, rows_b)
    )
    return any(full_a[item] != full_b[item] for item in full_a.keys() & full_b.keys())


def _versions(rows: Sequence[Row]) -> dict[str, str]:
    """Package → versions the rows were made with."""
    # A folder that went on after an upgrade has rows of several versions, and all of them are named.
    merged: dict[str, set[str]] = {}
    for text in {row["versions"] for row in rows if row["versions"]}:
        loaded: dict[str, Any] = json.loads(text)
        for package, version in loaded.items():
            merged.setdefault(package, set()).add(str(version))
    return {package: " and ".join(sorted(versions)) for package, versions in merged.items()}


def _shown(values: Sequence[str]) -> str:
    text = ", ".join(values)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
