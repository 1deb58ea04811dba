"""Two variants' rows as pairs of numbers on the same items.

Pure over result rows. Only items that both variants have are compared; every other item is counted under the reason why it
was dropped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from evaluators.statistics.macro_average import TaskPairs
from evaluators.statistics.paired_tests import is_binary
from jobs.analysis.storage import Storage, storage_of
from jobs.results.schema import DONE_STATUSES, Row


@dataclass(frozen=True, slots=True)
class ComparedMetric:
    """A number of a row that is compared. `column` is the row's, `unit_factor` turns it into what is shown."""

    column: str
    name: str
    is_higher_better: bool
    unit_factor: float

    def gain(self, difference: float) -> float:
        """The difference with its sign turned so that more is better."""
        return difference if self.is_higher_better else -difference


SCORE = ComparedMetric("score", "score", is_higher_better=True, unit_factor=100)  # in points
ANSWER_NLL = ComparedMetric("answer_nll", "NLL", is_higher_better=False, unit_factor=1)  # nats per token
METRICS = (SCORE, ANSWER_NLL)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Values of a policy and of its reference on the items both have, in the same order, with each item's context.

    `dropped` counts the items left out by reason. The storages, bytes held among them, are means over the pairs.
    """

    item_ids: tuple[str, ...]
    policy: tuple[float, ...]
    reference: tuple[float, ...]
    clusters: tuple[Hashable, ...]
    dropped: Mapping[str, int]
    policy_storage: Storage
    reference_storage: Storage

    @property
    def is_binary(self) -> bool:
        """Whether every value is 0 or 1; an empty pairing is not."""
        return bool(self.policy) and is_binary(self.policy) and is_binary(self.reference)

    @property
    def task_pairs(self) -> TaskPairs:
        """The pairs in the form that means over tasks are made of."""
        return TaskPairs(self.policy, self.reference, self.clusters)


def pair(
    policy_rows: Iterable[Row],
    reference_rows: Iterable[Row],
    column: str,
    names: tuple[str, str] = ("policy", "reference"),
) -> Pairs:
    """Pair by item id, in the order of the ids; `names` are what the two sides are called in `dropped`."""
    policy, reference = _by_item(policy_rows), _by_item(reference_rows)
    dropped: Counter[str] = Counter()
    kept = []
    # Sorted, since resampling draws by position: the same rows in another order must give the same interval.
    for item_id in sorted(policy.keys() | reference.keys()):
        sides = (policy.get(item_id), reference.get(item_id))
        reason = _why_dropped(sides, column, names)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(item_id)
    return Pairs(
        item_ids=tuple(kept),
        policy=tuple(float(policy[item][column]) for item in kept),
        reference=tuple(float(reference[item][column]) for item in kept),
        clusters=tuple(reference[item]["cluster_id"] for item in kept),
        dropped=dict(dropped),
        policy_storage=storage_of([policy[item] for item in kept]),
        reference_storage=storage_of([reference[item] for item in kept]),
    )


def summed(dropped: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Dropped items by reason, over several pairings."""
    total: Counter[str] = Counter()
    for of_one in dropped:
        total.update(of_one)
    return dict(total)


def _by_item(rows: Iterable[Row]) -> dict[str, Row]:
    return {row["item_id"]: row for row in rows}


def _why_dropped(sides: Sequence[Row | None], column: str, names: tuple[str, str]) -> str:
    """Why an item is no pair; empty where it is one."""
    for row, name in zip(sides, names, strict=True):
        if row is None:
            return f"no row in {name}"
        if row["status"] not in DONE_STATUSES:
            return f"failed in {name}"
        # Infinite minus infinite is not a number, and it would make the mean of all pairs not a number too.
        if row[column] is None or not math.isfinite(row[column]):
            return f"no {column} in {name}"
    return ""
