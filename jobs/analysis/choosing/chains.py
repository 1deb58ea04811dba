"""Each policy's budgets from mild to strict, in an order that comes from what was asked for and from no result.

A test of one budget after another is only exact in an order that was fixed before the losses were seen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jobs.analysis.summary import series_name
from jobs.results.schema import Row
from kvmerger.variants import REFERENCE_LABELS

SLOTS = "slots"


class Rung(NamedTuple):
    """Where a budget stands among others of its `kind`: the larger the `size`, the milder."""

    kind: str
    size: float


class _Named(NamedTuple):
    """What a variant's name without its budget is made of."""

    label: str
    policy: str
    kept_ratio: float | None
    budget_asked: str | None

    @classmethod
    def of(cls, row: Row) -> _Named:
        return cls(row["variant"], row["policy"], row["kept_ratio"], row["budget_asked"])


class ChainLabels(NamedTuple):
    """A policy's variants, mildest first. `name` is unique among the chains."""

    name: str
    labels: tuple[str, ...]


def chains_of(rows: Sequence[Row]) -> tuple[ChainLabels, ...]:
    """The chains of all variants of `rows` but the references, in the order in which their first variants come.

    Variants share a chain that have policy, parameters and kind of budget in common: no order between a share of slots and a
    number of them holds for every prompt.
    """
    asked = asked_by_label(rows)
    chains: dict[tuple[str, str | None, str], list[tuple[float, str]]] = {}
    for label, row in asked.items():
        rung = rung_of(label, asked)
        chains.setdefault((row["policy"], row["policy_params"], rung.kind), []).append((rung.size, label))
    # Of one size: in the order of the plan.
    labels = [[label for _, label in sorted(chain, key=lambda it: -it[0])] for chain in chains.values()]
    names = [series_name(_Named.of(asked[chain[0]])) for chain in labels]
    num_of = Counter(names)
    return tuple(
        ChainLabels(name if num_of[name] == 1 else f"{name} ({chain[0]})", tuple(chain))
        for name, chain in zip(names, labels, strict=True)
    )


def asked_by_label(rows: Sequence[Row]) -> dict[str, Row]:
    """A row of every variant but the references, which says what was asked for; a finished one where there is one."""
    asked: dict[str, Row] = {}
    for row in rows:
        if row["variant"] in REFERENCE_LABELS:
            continue
        # A failed row knows no slots, by which some variants are named.
        if row["variant"] not in asked or asked[row["variant"]]["kept_ratio"] is None:
            asked[row["variant"]] = row
    return asked


def rung_of(label: str, asked: Mapping[str, Row]) -> Rung:
    """The rung of a variant; `asked` has a row of each. A budget like another variant's stands where that one does."""
    return _rung(label, asked, frozenset())


def root_budget(label: str, asked: Mapping[str, Row]) -> Mapping[str, Any] | None:
    """The budget a variant ends up with: its own, or what a `like` leads to; None without one, or where that is unknown."""
    seen: set[str] = set()
    while label in asked and label not in seen:
        seen.add(label)
        budget = json.loads(asked[label]["budget_asked"] or "null")
        referred = _referred(budget)
        if referred is None:
            return budget if isinstance(budget, Mapping) else None
        label = referred
    return None


def _rung(label: str, asked: Mapping[str, Row], seen: frozenset[str]) -> Rung:
    budget = json.loads(asked[label]["budget_asked"] or "null")
    referred = _referred(budget)
    if referred is not None:
        unit = "bytes like" if "bytes" in budget else "like"
        if referred in seen or referred not in asked:
            return Rung(f"{unit} {referred}", 1.0)
        other, row = _rung(referred, asked, seen | {label}), asked[referred]
        return Rung(f"{unit} {row['policy']} {row['policy_params']} {other.kind}", other.size)
    match budget:
        case {"kept_ratio": float(size)} | {"kept_ratio": int(size)}:
            return Rung("share of slots", size)
        case {"slots": int(size)}:
            return Rung(SLOTS, size)
        case {"bytes": float(size)} | {"bytes": int(size)}:
            return Rung("share of bytes", size)
    return Rung("none", 1.0)


def _referred(budget: Any) -> str | None:
    match budget:
        case {"like": str(label)} | {"bytes": {"like": str(label)}}:
            return label
    return None
