"""Which variants fit into a memory at a length, how many requests each lets in, and what each loses.

Bytes are those that rows were measured to hold, positions included, carried over to the length: per token of context where a
share is kept, per slot where a number of slots is. Losses and seconds are measured and never carried over.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluators.statistics.intervals import Interval
from evaluators.statistics.macro_average import TaskPairs, macro_difference
from jobs.analysis.choosing.chains import SLOTS, asked_by_label, root_budget
from jobs.analysis.choosing.losses import LOSS_KINDS, ChoiceError, LossKind
from jobs.analysis.choosing.step_times import SECONDS, StepTime, step_times
from jobs.analysis.pairing import pair
from jobs.analysis.storage import Storage, storage_of
from jobs.results.grouping import Setting, grouped, setting_of, task_of
from jobs.results.schema import DONE_STATUSES, Row
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT

_REACH = 0.1  # a prompt within a tenth of the length asked for counts as one of that length


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to fit: requests of `num_tokens` tokens of context each, into `memory_bytes`.

    `num_requests`: at once; None asks for one, and how many there may be. `weights_bytes` are taken off the memory first;
    None: not known, and not counted.
    """

    memory_bytes: int
    num_tokens: int
    num_requests: int | None = None
    weights_bytes: int | None = None

    def check(self) -> None:
        """Raise ChoiceError where nothing can fit, whatever the variant."""
        for name, value in (("tokens", self.num_tokens), ("requests", self.num_requests)):
            if value is not None and value < 1:
                raise ChoiceError(f"{name} must be a whole number from 1 on, got {value}")
        if self.cache_bytes <= 0:
            raise ChoiceError(
                f"the weights take {self.weights_bytes:,} bytes of {self.memory_bytes:,}, which leaves nothing for a cache; "
                "give more memory"
            )

    @property
    def cache_bytes(self) -> int:
        """Memory that is left for caches."""
        return self.memory_bytes - (self.weights_bytes or 0)


@dataclass(frozen=True, slots=True)
class MeanLoss:
    """What a variant loses against the full cache on average, as `LossKind` counts it; over tasks, each weighs the same.

    `interval` is its 95 % interval; None for KL, whose means a few contexts carry.
    """

    mean: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Fit:
    """One variant. `num_fitting`: requests that its memory lets in; None where its rows tell no bytes.

    `losses` are by name of their kind, None where a task has no pair of numbers. `num_pairs` items have one in the kind that
    ranks; `num_unpaired` have only the full cache's, for a row that failed, is missing or has no number. `step` is measured
    in a batch of that many requests at about that length, else None.
    """

    label: str
    policy: str
    kept_ratio: float | None
    storage: Storage
    bytes_per_request: int | None
    num_fitting: int | None
    is_fitting: bool
    losses: Mapping[str, MeanLoss | None]
    num_pairs: int
    num_unpaired: int
    step: StepTime | None


@dataclass(frozen=True, slots=True)
class FitGroup:
    """The variants of one setting: those that fit first, each part ranked by what it loses. The full cache is one of them.

    `tokens` are the shortest and the longest context of the rows, `dtypes` and `devices` (kind, name) theirs.
    """

    setting: Setting
    tasks: tuple[str, ...]
    tokens: tuple[int, int]
    dtypes: tuple[str, ...]
    devices: tuple[tuple[str, str | None], ...]
    fits: tuple[Fit, ...]

    @property
    def is_measured_there(self) -> bool:
        """Whether any variant's step was measured."""
        return any(it.step for it in self.fits)


@dataclass(frozen=True, slots=True)
class Fits:
    """One answer; `kinds` of loss, the first of which ranks."""

    demand: Demand
    kinds: tuple[LossKind, ...]
    groups: tuple[FitGroup, ...]

    def is_far(self, group: FitGroup) -> bool:
        """Whether the length asked for lies beyond the lengths that were measured."""
        least, most = group.tokens
        return not least * (1 - _REACH) <= self.demand.num_tokens <= most * (1 + _REACH)


def what_fits(rows: Sequence[Row], demand: Demand, kind: LossKind) -> Fits:
    """What fits, ranked by `kind`. `rows` are as `jobs.results.planned.planned_rows` gives them, with the column `seconds`.

    Raises:
        ChoiceError: a demand that nothing meets, or no finished row of the full cache.
    """
    demand.check()
    full = [row for row in rows if row["variant"] == FULL and row["status"] in DONE_STATUSES]
    if not any(row["context_tokens"] for row in full):
        raise ChoiceError(
            "there is no finished row of the full cache, against which losses are counted; run the sweep to its end"
        )
    others = [LOSS_KINDS[name] for name in ("score", "nll") if name != kind.name]
    there = [it for it in others if any(row[it.metric.column] is not None for row in full)]
    if all(row[kind.metric.column] is None for row in full):
        instead = (
            f"take --metric {' or '.join(it.name for it in there)}" if there else "no other is there either"
        )
        raise ChoiceError(f"the rows of the full cache have no {kind.name}; {instead}")
    kinds = (kind, *there[:1])
    groups = grouped(rows, setting_of)
    return Fits(demand, kinds, tuple(_group(it, of, demand, kinds) for it, of in groups.items()))


def _group(setting: Setting, rows: Sequence[Row], demand: Demand, kinds: tuple[LossKind, ...]) -> FitGroup:
    by_label = grouped(rows, lambda row: row["variant"])
    asked = asked_by_label(rows)
    tokens = [row["context_tokens"] for row in rows if row["context_tokens"]]
    fits = [
        _fit(label, of_label, by_label.get(FULL, ()), root_budget(label, asked), demand, kinds)
        for label, of_label in by_label.items()
        if label not in (FULL_AA, NO_CONTEXT)
    ]
    return FitGroup(
        setting=setting,
        tasks=tuple(dict.fromkeys(map(task_of, rows))),
        tokens=(min(tokens, default=0), max(tokens, default=0)),
        dtypes=tuple(dict.fromkeys(row["dtype"] for row in rows if row["dtype"])),
        devices=tuple(dict.fromkeys((row["device"], row["device_name"]) for row in rows if row["device"])),
        fits=tuple(sorted(fits, key=lambda it: _rank(it, kinds))),
    )


def _fit(
    label: str,
    rows: Sequence[Row],
    full: Sequence[Row],
    budget: Mapping[str, int] | None,
    demand: Demand,
    kinds: tuple[LossKind, ...],
) -> Fit:
    done = [row for row in rows if row["status"] in DONE_STATUSES]
    kept = [row["kept_ratio"] for row in done if row["kept_ratio"] is not None]
    size = _bytes_at(done, demand.num_tokens, None if budget is None else budget.get(SLOTS))
    num_fitting = None if size is None else demand.cache_bytes // size
    wanted = demand.num_requests or 1
    pairs = pair(rows, full, kinds[0].metric.column)
    tasks = tuple(dict.fromkeys(map(task_of, full)))
    reach = demand.num_tokens * (1 - _REACH), demand.num_tokens * (1 + _REACH)
    measured = step_times(rows, reach) if rows and SECONDS in rows[0] else {}
    return Fit(
        label=label,
        policy=rows[0]["policy"],
        kept_ratio=statistics.fmean(kept) if kept else None,
        storage=storage_of(done),
        bytes_per_request=size,
        num_fitting=num_fitting,
        is_fitting=num_fitting is not None and num_fitting >= wanted,
        losses={it.name: _mean_loss(rows, full, tasks, it) for it in kinds},
        num_pairs=len(pairs.item_ids),
        num_unpaired=_num_with(full, kinds[0]) - len(pairs.item_ids),
        step=measured.get(demand.num_requests or num_fitting or 0),
    )


def _bytes_at(rows: Sequence[Row], num_tokens: int, num_slots: int | None) -> int | None:
    """Bytes of a prefix of `num_tokens` tokens; where a number of slots is kept, no more tokens than that count."""

    def counted(length: int) -> int:
        return length if num_slots is None else min(num_slots, length)

    # Each row's own ratio: the mean of the lengths would let long prompts outvote the others.
    known = [
        row["kv_bytes"] / counted(row["context_tokens"])
        for row in rows
        if row["kv_bytes"] is not None and row["context_tokens"]
    ]
    return max(1, math.ceil(statistics.fmean(known) * counted(num_tokens))) if known else None


def _num_with(full: Sequence[Row], kind: LossKind) -> int:
    return sum(row["status"] in DONE_STATUSES and row[kind.metric.column] is not None for row in full)


def _mean_loss(
    rows: Sequence[Row], full: Sequence[Row], tasks: Sequence[str], kind: LossKind
) -> MeanLoss | None:
    of_policy, of_full = grouped(rows, task_of), grouped(full, task_of)
    of_tasks = []
    for task in tasks:
        pairs = pair(of_policy.get(task, ()), of_full[task], kind.metric.column)
        if not pairs.item_ids:
            # A task that tells of nobody, for want of gold answers, is no part of the mean.
            if _num_with(of_full[task], kind):
                return None
            continue
        better, worse = pairs.reference, pairs.policy
        if not kind.metric.is_higher_better:
            better, worse = worse, better
        of_tasks.append(TaskPairs(better, worse, pairs.clusters))
    if not of_tasks:
        return None
    interval = macro_difference(of_tasks).interval
    return MeanLoss(interval.mean, None if kind.name == "kl" else interval)


def _rank(it: Fit, kinds: tuple[LossKind, ...]) -> tuple[bool, bool, list[float], float]:
    """Those that fit, of these those with all rows, then by loss, then by bytes."""
    # What failed must not rank by what is left of it.
    losses = [loss.mean if (loss := it.losses[kind.name]) else math.inf for kind in kinds]
    size = math.inf if it.bytes_per_request is None else it.bytes_per_request
    return not it.is_fitting, it.num_unpaired > 0, losses, size
