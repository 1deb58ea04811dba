"""Every item under every policy beside the full cache: who was right, and what it cost.

A row has exactly one outcome. Losses and gains are of more than 10 points of score, the allowance that `choose` starts from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.results.grouping import task_of
from jobs.results.schema import DONE_STATUSES, Row
from kvmerger.variants import FULL, REFERENCE_LABELS

LOST, LOST_LITTLE, GAINED, BOTH_RIGHT, BOTH_WRONG, UNSCORED, FAILED_ROW = (
    "policy lost, full cache right",
    "policy lost, full cache below 50 points",
    "policy gained",
    "both right",
    "both wrong",
    "no score to compare",
    "failed",
)
OUTCOMES = (LOST, LOST_LITTLE, GAINED, BOTH_RIGHT, BOTH_WRONG, UNSCORED, FAILED_ROW)
_ALLOWANCE = 0.1  # of a score from 0 to 1
_ROUNDING = 1e-9  # 0.8 - 0.7 is a little more than 0.1
_RIGHT = 0.5

_Pair = tuple[Row, Row | None]  # a policy's row, and the full cache's on the same item


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """One policy's row beside the full cache's; texts are as the model wrote them. Scores: 0 to 1, NLL: nats per token."""

    task: str
    item_id: str
    label: str
    outcome: str
    score: float | None
    full_score: float | None
    answer_nll: float | None
    full_nll: float | None
    prediction: str
    gold: str

    @property
    def nll_loss(self) -> float | None:
        """Positive where the policy is worse; None where one of the two is not known."""
        return _less(self.answer_nll, self.full_nll)


@dataclass(frozen=True, slots=True)
class ItemList:
    """The rows with the largest losses of score, then of NLL, first; `num_of` counts all rows of policies by outcome."""

    shown: tuple[ItemOutcome, ...]
    num_of: Mapping[str, int]

    @property
    def num_all(self) -> int:
        """Rows of policies, shown or not."""
        return sum(self.num_of.values())

    @property
    def num_shown_of(self) -> Mapping[str, int]:
        """Shown rows by outcome."""
        return Counter(it.outcome for it in self.shown)


def item_list(rows: Sequence[Row], most: int) -> ItemList:
    """At most `most` of the policies' rows of one setting, which have `prediction` and `answers`.

    Where there are more, every outcome has its share of the room, and of each those stand that lose most.
    """
    full = {row["item_id"]: row for row in rows if row["variant"] == FULL and row["status"] in DONE_STATUSES}
    policies: list[_Pair] = [
        (row, full.get(row["item_id"])) for row in rows if row["variant"] not in REFERENCE_LABELS
    ]
    ordered = sorted(policies, key=lambda pair: _loss(*pair), reverse=True)
    by_outcome: dict[str, list[_Pair]] = {}
    for pair in ordered:
        by_outcome.setdefault(_outcome(*pair), []).append(pair)
    num_of = {it: len(by_outcome[it]) for it in OUTCOMES if it in by_outcome}
    left, room = most, dict[str, int]()
    # From the rarest on, so that what one outcome does not need is there for the others.
    for place, outcome in enumerate(sorted(num_of, key=lambda it: num_of[it])):
        room[outcome] = min(num_of[outcome], left // (len(num_of) - place))
        left -= room[outcome]
    listed = [pair for outcome in num_of for pair in by_outcome[outcome][: room[outcome]]]
    shown = sorted(listed, key=lambda pair: _loss(*pair), reverse=True)
    return ItemList(tuple(_beside(*pair) for pair in shown), num_of)


def _beside(row: Row, full: Row | None) -> ItemOutcome:
    return ItemOutcome(
        task=task_of(row),
        item_id=row["item_id"],
        label=row["variant"],
        outcome=_outcome(row, full),
        score=row["score"],
        full_score=full["score"] if full else None,
        answer_nll=row["answer_nll"],
        full_nll=full["answer_nll"] if full else None,
        prediction=row["prediction"] or "",
        gold=(row["answers"] or [""])[0] or "",
    )


def _outcome(row: Row, full: Row | None) -> str:
    if row["status"] not in DONE_STATUSES:
        return FAILED_ROW
    if full is None or full["score"] is None or row["score"] is None:
        return UNSCORED
    loss = full["score"] - row["score"]
    if loss > _ALLOWANCE + _ROUNDING:
        return LOST if full["score"] >= _RIGHT else LOST_LITTLE
    if -loss > _ALLOWANCE + _ROUNDING:
        return GAINED
    return BOTH_RIGHT if full["score"] >= _RIGHT else BOTH_WRONG


def _loss(row: Row, full: Row | None) -> tuple[float, float]:
    """Of score, then of NLL; what is not known loses nothing, and stands after all that is known."""
    if full is None:
        return float("-inf"), float("-inf")
    losses = (_less(full["score"], row["score"]), _less(row["answer_nll"], full["answer_nll"]))
    of_score, of_nll = (float("-inf") if loss is None else loss for loss in losses)
    return of_score, of_nll


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
