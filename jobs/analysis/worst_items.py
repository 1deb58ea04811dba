"""The items on which each policy loses most against the full cache, with the answers both gave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.results.grouping import Setting, grouped, setting_of, task_of
from jobs.results.schema import DONE_STATUSES, Row
from kvmerger.variants import FULL, REFERENCE_LABELS

_NUM_SHOWN = 3
_NUM_ANSWERS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """What one variant answered. The text is as the model wrote it, control characters included."""

    label: str
    text: str
    score: float | None
    answer_nll: float | None


@dataclass(frozen=True, slots=True)
class Loss:
    """One item under one variant and under the full cache. `prompt_tail` is None in rows of older versions.

    `nll_loss` and `score_loss` are positive where the policy is worse.
    """

    task: str
    item_id: str
    prompt_tail: str | None
    gold: tuple[str, ...]
    full: ShownAnswer
    policy: ShownAnswer
    nll_loss: float | None
    score_loss: float | None


@dataclass(frozen=True, slots=True)
class PolicyLosses:
    """The worst items of one policy over all its budgets, each item once."""

    setting: Setting
    policy: str
    losses: tuple[Loss, ...]


def worst_items(rows: Iterable[Row]) -> list[PolicyLosses]:
    """Up to three items of every policy in every setting, largest loss first; policies that lose nothing are left out."""
    finished = [row for row in rows if row["status"] in DONE_STATUSES]
    # With the setting in the key: one item may have been run under several query modes or models.
    full = {(setting_of(row), row["item_id"]): row for row in finished if row["variant"] == FULL}
    # By policy, not by variant: budgets of one policy mostly lose on the same items.
    policies = grouped(
        (row for row in finished if row["variant"] not in REFERENCE_LABELS),
        lambda row: (setting_of(row), row["policy"]),
    )
    found = []
    for (setting, policy), group in policies.items():
        losses = _largest(
            [(row, full[setting, row["item_id"]]) for row in group if (setting, row["item_id"]) in full]
        )
        if losses:
            found.append(PolicyLosses(setting, policy, losses))
    return found


def _largest(pairs: Sequence[tuple[Row, Row]]) -> tuple[Loss, ...]:
    """The largest losses of (policy's row, full row) pairs, each item once."""
    # Largest loss first, so the first row of an item is the one under the variant that loses most on it.
    by_item: dict[str, tuple[Row, Row]] = {}
    for row, full in sorted(pairs, key=lambda pair: _rank(*pair), reverse=True):
        if max(_rank(row, full)) > 0:
            by_item.setdefault(row["item_id"], (row, full))
    return tuple(_loss(row, full) for row, full in list(by_item.values())[:_NUM_SHOWN])


def _rank(row: Row, full: Row) -> tuple[float, float]:
    """A pair's place by loss of answer NLL, then of score; minus infinity stands for a number that is not there."""
    losses = (_less(row["answer_nll"], full["answer_nll"]), _less(full["score"], row["score"]))
    nll_loss, score_loss = (float("-inf") if loss is None else loss for loss in losses)
    return nll_loss, score_loss


def _loss(row: Row, full: Row) -> Loss:
    return Loss(
        task=task_of(row),
        item_id=row["item_id"],
        prompt_tail=row["prompt_tail"],
        gold=tuple((row["answers"] or ())[:_NUM_ANSWERS_SHOWN]),
        full=_answer(full),
        policy=_answer(row),
        nll_loss=_less(row["answer_nll"], full["answer_nll"]),
        score_loss=_less(full["score"], row["score"]),
    )


def _answer(row: Row) -> ShownAnswer:
    return ShownAnswer(row["variant"], row["prediction"] or "", row["score"], row["answer_nll"])


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
