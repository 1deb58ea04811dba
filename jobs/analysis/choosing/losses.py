"""What a policy loses on a context against the full cache: the loss of its worst item.

Whatever the full cache has a number for and the policy has not counts as lost: rows that failed, are missing or have no
number are never taken for rows that lose nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluators.hints import nearest_name_hint
from jobs.analysis.pairing import ANSWER_NLL, SCORE, ComparedMetric
from jobs.results.grouping import grouped
from jobs.results.schema import DONE_STATUSES, TRUNCATED, Row
from kvmerger.variants import FULL

LOSES_MORE, FAILED_ROW, NO_ROW, NO_NUMBER = "loses more", "failed", "no row", "no number"
_ROUNDING = 1e-9  # 0.8 - 0.7 is a little more than 0.1


class ChoiceError(ValueError):
    """A question to the results that they cannot answer, with what to ask instead."""


@dataclass(frozen=True, slots=True)
class LossKind:
    """A number in which a policy may lose. `largest`: the most that can be lost, None where there is no end to it.

    `words` say how a loss is counted, and in which unit; it is positive where the policy is worse.
    """

    name: str
    metric: ComparedMetric
    largest: float | None
    words: str

    def loss(self, policy: float, full: float) -> float:
        """The loss of one item from the two numbers of its rows."""
        return -self.metric.gain(policy - full)


LOSS_KINDS: Mapping[str, LossKind] = {
    it.name: it
    for it in (
        LossKind("score", SCORE, 1.0, "score (0 to 1), the full cache's minus the policy's"),
        LossKind(
            "nll", ANSWER_NLL, None, "nats per token of the gold answer, the policy's minus the full cache's"
        ),
        LossKind(
            "kl",
            ComparedMetric("kl_mean", "KL", is_higher_better=False, unit_factor=1),
            None,
            "KL to the full cache, nats per token of its own answer (the full cache's is 0)",
        ),
        LossKind(
            "top1",
            ComparedMetric("top1_agreement", "top-1", is_higher_better=True, unit_factor=1),
            1.0,
            "share of the full cache's answer tokens that the policy does not rank first",
        ),
    )
}


def loss_kind(name: str) -> LossKind:
    """The kind of that name, or of its column in the rows; ChoiceError for any other."""
    by_column = {it.metric.column: it for it in LOSS_KINDS.values()}
    found = LOSS_KINDS.get(name) or by_column.get(name)
    if found is None:
        raise ChoiceError(f"there is no metric {name!r} to lose in. {nearest_name_hint(name, LOSS_KINDS)}")
    return found


@dataclass(frozen=True, slots=True)
class Sample:
    """The contexts that can tell: context → item → the full cache's number. `left_out` counts the others by reason."""

    full: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, int]

    @property
    def num_contexts(self) -> int:
        """How many contexts there are."""
        return len(self.full)

    def num_safe(self, kind: LossKind, most_loss: float) -> int:
        """Contexts on which nobody can lose more than `most_loss`: where the full cache fails, there is nothing to lose."""
        if not kind.metric.is_higher_better:
            return 0
        return sum(max(items.values()) <= most_loss for items in self.full.values())


def sample_of(rows: Sequence[Row], kind: LossKind, keeps_cut: bool) -> Sample:
    """The contexts of `rows` (one setting) of which the full cache has the number on every item.

    A context with a prompt that was cut is left out unless `keeps_cut`: the answer may be in what is gone, and where the full
    cache cannot find it either, nothing is lost and nothing was tested.
    """
    full: dict[str, dict[str, float]] = {}
    left_out: Counter[str] = Counter()
    for context, of_context in grouped(rows, lambda row: row["cluster_id"]).items():
        of_full = {row["item_id"]: row for row in of_context if row["variant"] == FULL}
        reasons = (
            _why_left_out(of_full.get(item), kind, keeps_cut)
            for item in {row["item_id"] for row in of_context}
        )
        # One reason a context, the same whatever the order of the rows.
        if reason := min((it for it in reasons if it), default=""):
            left_out[reason] += 1
        else:
            full[context] = {item: row[kind.metric.column] for item, row in of_full.items()}
    return Sample(full, dict(left_out))


def lost_contexts(rows: Sequence[Row], sample: Sample, kind: LossKind, most_loss: float) -> Counter[str]:
    """Contexts on which a variant (its `rows`) loses more than `most_loss` on any item, or cannot tell: by reason."""
    by_item = {row["item_id"]: row for row in rows}
    lost: Counter[str] = Counter()
    for items in sample.full.values():
        found = {_why_lost(by_item.get(item), full, kind, most_loss) for item, full in items.items()}
        reason = next((it for it in (LOSES_MORE, FAILED_ROW, NO_ROW, NO_NUMBER) if it in found), None)
        if reason:
            lost[reason] += 1
    return lost


def _why_left_out(full: Row | None, kind: LossKind, keeps_cut: bool) -> str:
    if full is None:
        return "the full cache has no row"
    if full["status"] not in DONE_STATUSES:
        return "the full cache failed"
    if not _is_number(full[kind.metric.column]):
        return f"the full cache has no {kind.name}"
    return "a prompt was cut" if full["status"] == TRUNCATED and not keeps_cut else ""


def _why_lost(row: Row | None, full: float, kind: LossKind, most_loss: float) -> str:
    if row is None:
        return NO_ROW
    if row["status"] not in DONE_STATUSES:
        return FAILED_ROW
    value = row[kind.metric.column]
    if not _is_number(value):
        return NO_NUMBER
    return LOSES_MORE if kind.loss(value, full) > most_loss + _ROUNDING else ""


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
