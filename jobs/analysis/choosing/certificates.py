"""The smallest budget of each policy that is shown to lose little: fixed-sequence tests over contexts, from stored rows.

The chance that any certificate of one answer is false is at most 1 - confidence: each policy's budgets are tested from mild
to strict up to the first that is not shown, and the error is split evenly over all of the answer's chains.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluators.statistics.fixed_sequence import most_bad, needed_contexts, num_shown, share_p_value
from jobs.analysis.choosing.chains import ChainLabels, chains_of
from jobs.analysis.choosing.losses import LOSS_KINDS, ChoiceError, LossKind, Sample, lost_contexts, sample_of
from jobs.analysis.labels import LabelError, label_meant
from jobs.analysis.storage import Storage, storage_of
from jobs.results.grouping import Setting, grouped, setting_of, task_of
from jobs.results.schema import DONE_STATUSES, Row
from jobs.results.stored_bytes import held_bytes
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT

_DIGITS = 12  # 1 - 0.95 is 0.050000000000000044


@dataclass(frozen=True, slots=True)
class Contract:
    """What is asked: on at most a `share` of contexts a loss of more than `most_loss`, shown with `confidence`.

    `keeps_cut`: whether contexts count whose prompts were cut.
    """

    kind: LossKind = LOSS_KINDS["score"]
    most_loss: float = 0.1
    share: float = 0.05
    confidence: float = 0.95
    keeps_cut: bool = False

    @property
    def error(self) -> float:
        """The chance of any false certificate, at most."""
        return round(1 - self.confidence, _DIGITS)

    def check(self) -> None:
        """Raise ChoiceError for a number that makes no contract."""
        for name, value in (("share", self.share), ("confidence", self.confidence)):
            if not 0 < value < 1:
                raise ChoiceError(
                    f"{name} {value:g} does not lie between 0 and 1; 5 % of contexts are 0.05, 95 % confidence is 0.95"
                )
        most = math.inf if self.kind.largest is None else self.kind.largest
        if not 0 <= self.most_loss < most:  # NaN too
            reach = (
                "0 on"
                if self.kind.largest is None
                else f"0 to less than {most:g}, of which 0.1 are 10 points"
            )
            raise ChoiceError(
                f"a loss of {self.most_loss:g} is no bound on {self.kind.name}; give one from {reach}"
            )


@dataclass(frozen=True, slots=True)
class Level:
    """One variant of a chain, or a reference: on how many contexts it loses more, and what it holds.

    `lost_by` counts the lost contexts by reason, rows that failed among them. `bytes_per_token` is bytes held per token of
    context; it and `storage` are means over finished rows. `num_degenerate` of these dropped nothing.
    """

    label: str
    policy: str
    kept_ratio: float | None
    num_contexts: int
    lost_by: Mapping[str, int]
    p_value: float
    storage: Storage
    bytes_per_token: float | None
    num_degenerate: int

    @property
    def num_lost(self) -> int:
        """Contexts that are lost, for whatever reason."""
        return sum(self.lost_by.values())


@dataclass(frozen=True, slots=True)
class Chain:
    """One policy's variants, mildest first, of which the first `num_certified` are certified."""

    name: str
    levels: tuple[Level, ...]
    num_certified: int

    @property
    def smallest(self) -> Level | None:
        """The certified level that holds the fewest bytes; None without one."""
        return min(self.levels[: self.num_certified], key=_held_share, default=None)

    @property
    def refused(self) -> Level | None:
        """The first level that is not certified, at which the tests stopped."""
        return self.levels[self.num_certified] if self.num_certified < len(self.levels) else None


@dataclass(frozen=True, slots=True)
class CertificateGroup:
    """The chains of one setting, on all its tasks or on one (`task`).

    `contexts_by_task` counts contexts that take part; on `num_safe` of them the full cache has so little that no policy can
    lose more than is allowed. `needed`: the fewest that could certify anything; `most_lost`: how
    many of them a level may lose, None below that. `references` are the full cache again and no context, where there are
    such rows. Where even no context loses on no more than the share asked for, the contexts test nothing: `is_blind`.
    """

    setting: Setting
    task: str | None
    contexts_by_task: Mapping[str, int]
    num_contexts: int
    num_safe: int
    left_out: Mapping[str, int]
    needed: int
    most_lost: int | None
    chains: tuple[Chain, ...]
    references: tuple[Level, ...]
    is_blind: bool

    @property
    def is_too_few(self) -> bool:
        """Whether there are too few contexts for any certificate, whatever they say."""
        return self.num_contexts < self.needed

    @property
    def cheapest(self) -> Level | None:
        """The certified level of any policy that holds the fewest bytes; None: keep the full cache, or nothing was tested."""
        return min((it.smallest for it in self.chains if it.smallest), key=_held_share, default=None)


@dataclass(frozen=True, slots=True)
class Certificates:
    """One answer. `error_of_chain` is what each of its `num_chains` chains may spend."""

    contract: Contract
    num_chains: int
    error_of_chain: float
    needed_for_one: int
    groups: tuple[CertificateGroup, ...]


def certify(
    rows: Sequence[Row], contract: Contract, policies: Sequence[str] = (), by_task: bool = False
) -> Certificates:
    """What `rows`, as `jobs.results.planned.planned_rows` gives them, certify under a contract.

    `policies`: labels of variants or names of chains, to split the error over these alone; they must be chosen before the
    results are seen. `by_task`: a certificate for each task, instead of one for the mixture of all.

    Raises:
        ChoiceError: a contract that is none, a policy that is not there, or no row of the full cache with the number.
    """
    contract.check()
    named = _meant(rows, policies)
    parts = [
        (setting, task, of_task, _named(chains_of(of_task), named))
        for setting, of_setting in grouped(rows, setting_of).items()
        for task, of_task in (grouped(of_setting, task_of).items() if by_task else [(None, of_setting)])
    ]
    _check_full(rows, contract.kind)
    num_chains = sum(len(chains) for *_, chains in parts)
    if not num_chains:
        raise ChoiceError("there is no policy beside the full cache; add some to the sweep's `policies`")
    error = contract.error / num_chains
    groups = tuple(_group(*part, contract, error) for part in parts if part[-1])
    return Certificates(contract, num_chains, error, needed_contexts(contract.share, contract.error), groups)


def _named(chains: Sequence[ChainLabels], policies: frozenset[str]) -> list[ChainLabels]:
    """Of the chains, the levels that are named by label or by their chain's name; all where nothing is named."""
    kept = (
        it._replace(labels=tuple(label for label in it.labels if {label, it.name} & policies))
        for it in chains
    )
    return [it for it in kept if it.labels] if policies else list(chains)


def _meant(rows: Sequence[Row], policies: Sequence[str]) -> frozenset[str]:
    """The chains and labels that are named, in the spelling they have here; ChoiceError for a name of neither."""
    chains = chains_of(rows)
    names = [chain.name for chain in chains]
    labels = [label for chain in chains for label in chain.labels]
    meant = set()
    for name in policies:
        try:
            # Chains first: the policy alone means all of its budgets, where elsewhere it would mean too many.
            meant.add(label_meant(name, names))
        except LabelError:
            try:
                meant.add(label_meant(name, labels))
            except LabelError as error:
                raise ChoiceError(str(error)) from error
    return frozenset(meant)


def _check_full(rows: Sequence[Row], kind: LossKind) -> None:
    full = [row for row in rows if row["variant"] == FULL and row["status"] in DONE_STATUSES]
    if not full:
        raise ChoiceError(
            "there is no finished row of the full cache, against which losses are counted; run the sweep to its end"
        )
    if not any(row[kind.metric.column] is not None for row in full):
        there = [
            it.name for it in LOSS_KINDS.values() if any(row[it.metric.column] is not None for row in full)
        ]
        instead = f"take --metric {' or '.join(there)}" if there else "no other number is there either"
        raise ChoiceError(f"the rows of the full cache have no {kind.name}; {instead}")


def _group(
    setting: Setting,
    task: str | None,
    rows: Sequence[Row],
    chains: Sequence[ChainLabels],
    contract: Contract,
    error: float,
) -> CertificateGroup:
    sample = sample_of(rows, contract.kind, contract.keeps_cut)
    by_label = grouped(rows, lambda row: row["variant"])
    levels = {label: _level(label, of_label, sample, contract) for label, of_label in by_label.items()}
    blank = levels.get(NO_CONTEXT)
    num_contexts = sample.num_contexts
    is_blind = blank is not None and num_contexts > 0 and blank.num_lost <= contract.share * num_contexts
    contexts = {(task_of(row), row["cluster_id"]) for row in rows if row["cluster_id"] in sample.full}
    return CertificateGroup(
        setting=setting,
        task=task,
        contexts_by_task=dict(Counter(name for name, _ in sorted(contexts))),
        num_contexts=num_contexts,
        num_safe=sample.num_safe(contract.kind, contract.most_loss),
        left_out=sample.left_out,
        needed=needed_contexts(contract.share, error),
        most_lost=most_bad(num_contexts, contract.share, error),
        chains=tuple(_chain(chain, levels, error, is_blind) for chain in chains),
        references=tuple(levels[label] for label in (FULL_AA, NO_CONTEXT) if label in levels),
        is_blind=is_blind,
    )


def _chain(chain: ChainLabels, levels: Mapping[str, Level], error: float, is_blind: bool) -> Chain:
    found = tuple(levels[label] for label in chain.labels)
    return Chain(chain.name, found, 0 if is_blind else num_shown((it.p_value for it in found), error))


def _level(label: str, rows: Sequence[Row], sample: Sample, contract: Contract) -> Level:
    lost = lost_contexts(rows, sample, contract.kind, contract.most_loss)
    finished = [row for row in rows if row["status"] in DONE_STATUSES and row["cluster_id"] in sample.full]
    known = [row for row in finished if held_bytes(row) is not None and row["context_tokens"]]
    kept = [row["kept_ratio"] for row in finished if row["kept_ratio"] is not None]
    num_contexts = sample.num_contexts
    return Level(
        label=label,
        policy=rows[0]["policy"],
        kept_ratio=statistics.fmean(kept) if kept else None,
        num_contexts=num_contexts,
        lost_by=dict(lost),
        p_value=share_p_value(lost.total(), num_contexts, contract.share) if num_contexts else 1.0,
        storage=storage_of(finished),
        bytes_per_token=statistics.fmean((held_bytes(row) or 0) / row["context_tokens"] for row in known)
        if known
        else None,
        num_degenerate=sum(bool(row["is_degenerate"]) for row in finished),
    )


def _held_share(level: Level) -> float:
    share = level.storage.held_share
    return math.inf if share is None else share
