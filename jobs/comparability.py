"""Which rows of two results may be paired: what makes a pair wrong is refused, what may explain a difference is told.

Pure over result rows. A and B must share model, revision, dtype and query mode, and ask and score each common item alike.
Versions, device, execution, seed and a policy's settings may differ: they can be what the comparison is about.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.result_schema import DONE_STATUSES, Row
from kvmerger.variants import FULL

_MAX_SHOWN_CHARS = 60
_KEY_COLUMNS = {"model": "model", "query_mode": "query mode"}
_RUN_COLUMNS = {"model_revision": "model revision", "dtype": "dtype"}
_ITEM_COLUMNS = {
    "metric": "scorer",
    "answers": "gold answers",
    "cluster_id": "context",
    "context_tokens": "context tokens",
    "tail_tokens": "tail tokens",
}
_TOLD_COLUMNS = {"device": "device", "execution": "execution", "seed": "seed"}
_POLICY_COLUMNS = {"policy_version": "version", "policy_params": "parameters", "budget_asked": "budget"}
HEAVY_COLUMNS = ("answers", "versions")
"""What is read here beyond the columns that summaries need."""
RunKey = tuple[str, str]


class ComparisonError(ValueError):
    """Results that cannot be paired, with what differs, or what there is instead."""


def run_key(row: Row) -> RunKey:
    """Query mode and model, which every row has, failed ones too: rows of two keys are never paired."""
    return row["query_mode"], row["model"]


def check_comparable(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> frozenset[RunKey]:
    """The keys both results have, with everything else that pairs depend on alike.

    Raises:
        ComparisonError: no rows, no common key or item, or the list of what differs.
    """
    for name, rows in (("A", rows_a), ("B", rows_b)):
        if not any(row["status"] in DONE_STATUSES for row in rows):
            raise ComparisonError(f"{name} has no finished rows.")
    keys = {run_key(row) for row in rows_a} & {run_key(row) for row in rows_b}
    if not keys:
        raise _refusal(_differing(rows_a, rows_b, _KEY_COLUMNS | _RUN_COLUMNS))
    found: list[str] = []
    for key in sorted(keys):
        done_a, done_b = _finished(rows_a, key), _finished(rows_b, key)
        found += _differing(done_a, done_b, _RUN_COLUMNS)
        found += _differing_items(done_a, done_b)
    if found:
        raise _refusal(found)
    items_a, items_b = ({row["item_id"] for row in rows} for rows in (rows_a, rows_b))
    if not items_a & items_b:
        raise ComparisonError(f"no item is in both: A has {min(items_a)!r} …, B has {min(items_b)!r} ….")
    return frozenset(keys)


def differences_to_tell(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> tuple[str, ...]:
    """Sentences on what else is not the same: versions, machine, policies' settings, or the engine's results version."""
    done_a, done_b = ([row for row in rows if row["status"] in DONE_STATUSES] for rows in (rows_a, rows_b))
    told = _differing(done_a, done_b, _TOLD_COLUMNS)
    versions_a, versions_b = _versions(done_a), _versions(done_b)
    for package in sorted(versions_a.keys() | versions_b.keys()):
        mine, other = versions_a.get(package, "-"), versions_b.get(package, "-")
        if mine != other:
            told.append(f"{package}: {mine} in A, {other} in B")
    labels = dict.fromkeys(row["variant"] for row in done_a)
    for label in labels:
        of_a, of_b = ([row for row in rows if row["variant"] == label] for rows in (done_a, done_b))
        if of_b:
            told += [f"{label}, {it}" for it in _differing(of_a, of_b, _POLICY_COLUMNS)]
    if not told and _has_other_identities(done_a, done_b):
        told.append("the full rows have other identities: answer length, prompt text or engine differ")
    return tuple(told)


def _refusal(differences: Iterable[str]) -> ComparisonError:
    lines = "".join(f"\n  {it}" for it in differences)
    return ComparisonError(f"A and B cannot be paired, they differ in{lines}")


def _finished(rows: Sequence[Row], key: RunKey) -> list[Row]:
    return [row for row in rows if row["status"] in DONE_STATUSES and run_key(row) == key]


def _differing(rows_a: Sequence[Row], rows_b: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
    """A sentence for every column whose set of values is not the same."""
    found = []
    for column, name in columns.items():
        in_a, in_b = (sorted({str(row[column]) for row in rows}) for rows in (rows_a, rows_b))
        if rows_a and rows_b and in_a != in_b:
            found.append(f"{name}: {_shown(in_a)} in A, {_shown(in_b)} in B")
    return found


def _differing_items(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> list[str]:
    """A sentence for every column in which common items differ, with one of them."""
    by_item_a, by_item_b = ({row["item_id"]: row for row in rows} for rows in (rows_a, rows_b))
    common = sorted(by_item_a.keys() & by_item_b.keys())
    found = []
    for column, name in _ITEM_COLUMNS.items():
        differ = [it for it in common if by_item_a[it][column] != by_item_b[it][column]]
        if differ:
            values = (_shown([str(rows[differ[0]][column])]) for rows in (by_item_a, by_item_b))
            found.append(
                f"{name} of {len(differ)} of {len(common)} common items, as {differ[0]}: "
                + " in A, ".join(values)
                + " in B"
            )
    return found


def _has_other_identities(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> bool:
    """An identity covers all that was asked, so equal questions to the full cache have equal ones."""
    full_a, full_b = (
        {row["item_id"]: row["identity"] for row in rows if row["variant"] == FULL}
        for rows in (rows_a, rows_b)
    )
    return any(full_a[item] != full_b[item] for item in full_a.keys() & full_b.keys())


def _versions(rows: Sequence[Row]) -> dict[str, str]:
    """Package → versions the rows were made with."""
    merged: dict[str, set[str]] = {}
    for text in {row["versions"] for row in rows if row["versions"]}:
        loaded: dict[str, Any] = json.loads(text)
        for package, version in loaded.items():
            merged.setdefault(package, set()).add(str(version))
    return {package: " and ".join(sorted(versions)) for package, versions in merged.items()}


def _shown(values: Sequence[str]) -> str:
    text = ", ".join(values)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
