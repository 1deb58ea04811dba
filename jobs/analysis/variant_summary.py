"""One variant on one task as means, each with its 95 % interval.

A mean over no rows is None. Rows that are summed up share task, query mode, model and execution.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from evaluators import scoring
from evaluators.statistics.intervals import Interval, mean_interval, paired_difference, proportion_interval
from evaluators.statistics.skewed import skewed_mean_interval
from jobs.analysis.storage import Storage, storage_of
from jobs.results.schema import DONE_STATUSES, ResultError, Row
from kvmerger.variants import FULL, NO_CONTEXT

_NAMED_BY_OUTCOME = "kvmerger_paper"  # a cosine threshold decides how much it keeps


@dataclass(frozen=True, slots=True)
class VariantSummary:
    """One row of a table. Means are over the ok and truncated rows that have the number; None: there is none.

    `answer_nll` is nats per token of the first gold answer, `kl` nats per token of the full row's own answer; lower
    is better in both. `nll_recovered` is 0 (as without the context) to 1 (as with the full cache). `num_right` is
    set where every score of the task is 0 or 1. `kept_ratio` is measured slots over full slots, `kv_bytes` all storages of
    the prefix, positions included; `storage` is what they hold. `corpus_score` is the
    published number, 0 to 1, where that is no mean over items; `unscored_reason` is told where no row has a score.
    `params` and `budget_asked` are the rows' JSON.
    """

    label: str
    policy: str
    num_rows: int
    num_finished: int
    answer_nll: Interval | None
    nll_recovered: float | None
    kl: Interval | None
    top1_agreement: Interval | None
    score: Interval | None
    num_right: int | None
    kept_ratio: float | None
    kv_bytes: float | None
    storage: Storage
    num_degenerate: int
    degenerate_reason: str | None
    corpus_score: float | None = None
    unscored_reason: str | None = None
    params: str | None = None
    budget_asked: str | None = None

    @property
    def score_interval(self) -> Interval | None:
        """Of the score: exact (Clopper-Pearson) where every score of the task is 0 or 1, else the one over contexts."""
        if self.score is None or self.num_right is None:
            return self.score
        return proportion_interval(self.num_right, self.score.num_items)


class Kept(Protocol):
    """A variant on a task, over tasks, or beside a published figure. `kept_ratio` is measured."""

    @property
    def label(self) -> str: ...
    @property
    def policy(self) -> str: ...
    @property
    def kept_ratio(self) -> float | None: ...


class Budgeted(Kept, Protocol):
    """A variant that also tells what it was asked to keep, as its rows' JSON."""

    @property
    def budget_asked(self) -> str | None: ...


def is_named_by_outcome(it: Kept) -> bool:
    """Whether readers know the variant by what it kept, because its policy does not control that."""
    first, _, others = it.policy.partition("+")
    # With other parts behind it, the set-up in its label tells whether the threshold still decides.
    return first == _NAMED_BY_OUTCOME and it.kept_ratio is not None and (not others or "[" in it.label)


def without_setup(label: str) -> str:
    """The label without the protected fractions in its brackets; a form behind them stays."""
    name, _, rest = label.partition("[")
    return f"{name}{rest.partition(']')[2]}"


@dataclass(frozen=True, slots=True)
class NllScale:
    """The two ends of `nll_recovered` on one task, item id → nats per token; `clusters` maps items to contexts."""

    full: Mapping[str, float]
    no_context: Mapping[str, float]
    clusters: Mapping[str, str]

    @classmethod
    def of(cls, rows_by_label: Mapping[str, Sequence[Row]]) -> NllScale:
        """Read both ends from the reference rows, which may be missing."""
        full_rows = rows_by_label.get(FULL, ())
        clusters = {row["item_id"]: row["cluster_id"] for row in full_rows}
        return cls(_nll_by_item(full_rows), _nll_by_item(rows_by_label.get(NO_CONTEXT, ())), clusters)

    @property
    def is_usable(self) -> bool:
        """Whether the full cache beats having no context by an interval above 0: else there is nothing to recover."""
        common = sorted(self.full.keys() & self.no_context.keys())
        if not common:
            return False
        gain = paired_difference(
            [self.no_context[item] for item in common],
            [self.full[item] for item in common],
            [self.clusters[item] for item in common],
        ).interval
        # A single context has no interval, so there is no scale either: one mean above 0 proves nothing.
        return gain.low is not None and gain.low > 0

    def recovered(self, rows: Sequence[Row]) -> float | None:
        """(none - policy) / (none - full), of means over the items all three have."""
        nll = _nll_by_item(rows)
        common = nll.keys() & self.full.keys() & self.no_context.keys()
        if not self.is_usable or not common:
            return None
        # A ratio of means, not a mean of ratios: on an item whose context is worth next to nothing, the item's own
        # ratio is anything between minus and plus infinity.
        none, full = _mean_over(self.no_context, common), _mean_over(self.full, common)
        return (none - _mean_over(nll, common)) / (none - full) if none > full else None


def summarize_variant(label: str, rows: Sequence[Row], scale: NllScale, is_binary: bool) -> VariantSummary:
    """Sum up the rows of one variant on one task, at least one; failed rows only count as rows."""
    finished = [row for row in rows if row["status"] in DONE_STATUSES]
    scores = [row["score"] for row in finished if row["score"] is not None]
    reasons = [row["degenerate_reason"] for row in finished if row["is_degenerate"]]
    return VariantSummary(
        label=label,
        policy=rows[0]["policy"],
        num_rows=len(rows),
        num_finished=len(finished),
        answer_nll=_interval(finished, "answer_nll"),
        nll_recovered=scale.recovered(finished),
        # By the column, not by the values: a sample that holds none of the few large KLs looks like any other number's.
        kl=_interval(finished, "kl_mean", skewed_mean_interval),
        top1_agreement=_interval(finished, "top1_agreement"),
        score=_interval(finished, "score"),
        num_right=round(sum(scores)) if scores and is_binary else None,
        kept_ratio=_mean(finished, "kept_ratio"),
        kv_bytes=_mean(finished, "kv_bytes"),
        storage=storage_of(finished),
        num_degenerate=len(reasons),
        degenerate_reason=reasons[0] if reasons else None,
        corpus_score=_corpus_score(finished),
        unscored_reason=finished[0]["score_reason"] if finished and not scores else None,
        params=rows[0]["policy_params"],
        budget_asked=rows[0]["budget_asked"],
    )


def mean_of(interval: Interval | None) -> float | None:
    """The interval's mean; None without an interval."""
    return None if interval is None else interval.mean


def _interval(
    rows: Sequence[Row],
    column: str,
    interval_of: Callable[[Sequence[float], Sequence[Hashable]], Interval] = mean_interval,
) -> Interval | None:
    # A gold token of probability 0 costs infinitely many nats, and one such item would swallow every other.
    known = [row for row in rows if row[column] is not None and math.isfinite(row[column])]
    if not known:
        return None
    return interval_of([row[column] for row in known], [row["cluster_id"] for row in known])


def _corpus_score(rows: Sequence[Row]) -> float | None:
    """The corpus score of a metric made of parts; None for other metrics."""
    scored = [row for row in rows if row["score"] is not None]
    # Rows of older versions lack the parts; without them the score would be of other items than the mean beside it.
    if not scored or any(row["score_parts"] is None for row in scored):
        return None
    parts = [json.loads(row["score_parts"]) for row in scored]
    for row, its_parts in zip(scored, parts, strict=True):
        if its_parts.keys() != parts[0].keys():
            raise ResultError(
                f"rows/{row['unit_id']}.parquet, row {row['identity']!r}, column 'score_parts': it has {sorted(its_parts)}, "
                f"another row of {row['metric']} {sorted(parts[0])}; score both anew with `report --rescore`"
            )
    return scoring.corpus_score(scored[0]["metric"], parts)


def _mean(rows: Sequence[Row], column: str) -> float | None:
    known = [row[column] for row in rows if row[column] is not None]
    return statistics.fmean(known) if known else None


def _nll_by_item(rows: Sequence[Row]) -> dict[str, float]:
    return {
        row["item_id"]: row["answer_nll"]
        for row in rows
        if row["status"] in DONE_STATUSES and row["answer_nll"] is not None
    }


def _mean_over(nll: Mapping[str, float], items: set[str]) -> float:
    return statistics.fmean(nll[item] for item in sorted(items))
