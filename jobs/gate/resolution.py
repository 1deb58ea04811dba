"""Which margins a night's items can resolve, computed before the night is run.

Made from the baseline's own A/A noise where it has some, otherwise from an assumed share of items that flip by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evaluators.statistics.intervals import MIN_CLUSTERS, MIN_DISCORDANT_PAIRS, StatisticsError
from evaluators.statistics.noninferiority import ONE_SIDED_ALPHA, detectable_margin, needed_clusters
from jobs.analysis.differences import noise_pairs
from jobs.analysis.pairing import ANSWER_NLL, SCORE, ComparedMetric
from jobs.results.grouping import grouped, task_of
from jobs.results.schema import Row
from jobs.settings.gate import GateSettings

_POINTS = 100
_PERCENT = 100


@dataclass(frozen=True, slots=True)
class Resolution:
    """One metric on one task: what `num_contexts` resolve with 80 % power where nothing is lost, in the metric's unit.

    `smallest` is None where that is not known before a baseline is there. `needed` contexts would resolve `margin`, None
    for more than can be said.
    """

    task: str
    metric: str
    unit: str
    margin: float
    num_contexts: int
    smallest: float | None
    needed: int | None

    @property
    def is_resolved(self) -> bool:
        """Whether the margin can be decided at all."""
        return self.num_contexts >= MIN_CLUSTERS and (self.smallest is None or self.smallest <= self.margin)

    def __str__(self) -> str:
        """A sentence for what cannot be resolved, with the remedy."""
        if self.num_contexts < MIN_CLUSTERS:
            what = f"{self.num_contexts} contexts carry no verdict, whatever the margin"
            remedy = self._enough()
        else:
            what = f"{self.num_contexts} contexts resolve {self.smallest:.2g} {self.unit}, the margin is {self.margin:g}"
            remedy = "a wider margin" if self.needed is None else f"at least {self.needed}, or a wider margin"
        return f"{self.task}, {self.metric}: {what}; give it {remedy}"

    def _enough(self) -> str:
        """Contexts for any verdict at all; a wider margin spares only those beyond them."""
        if self.needed is None or self.needed <= MIN_CLUSTERS:
            return f"at least {MIN_CLUSTERS}"
        return f"at least {self.needed}, or {MIN_CLUSTERS} and a wider margin"


def resolutions(
    contexts: Mapping[str, int], baseline: Sequence[Row], gate: GateSettings
) -> tuple[Resolution, ...]:
    """Of every task (name → its number of contexts tonight), for scores and answer NLL."""
    by_task = grouped(baseline, task_of)
    margins = gate.margins
    found = []
    for task, num_contexts in contexts.items():
        by_label = grouped(by_task.get(task, []), lambda row: str(row["variant"]))
        for metric, margin in ((SCORE, margins.score_points / _POINTS), (ANSWER_NLL, margins.nll_nats)):
            noise = noise_pairs(by_label, metric)
            differences = [a - b for a, b in zip(noise.policy, noise.reference, strict=True)]
            clusters: Sequence[object] = noise.clusters
            if not differences and metric is SCORE:
                differences, clusters = _assumed(gate.assumed_flip_percent, num_contexts)
            smallest, needed = _resolved(metric, differences, clusters, num_contexts, margin)
            factor = metric.unit_factor
            found.append(
                Resolution(
                    task=task,
                    metric=metric.name,
                    unit="points" if metric is SCORE else "nats",
                    margin=factor * margin,
                    num_contexts=num_contexts,
                    smallest=None if smallest is None else factor * smallest,
                    needed=MIN_CLUSTERS if needed is None and num_contexts < MIN_CLUSTERS else needed,
                )
            )
    return tuple(found)


def _assumed(flip_percent: float, num: int) -> tuple[list[float], Sequence[object]]:
    """Differences of `num` items of which a share flips, with a context each."""
    # Half each way, so that the mean stays near 0: noise has no direction.
    num_flips = round(num * flip_percent / _PERCENT)
    flips = [1.0 if place % 2 else -1.0 for place in range(num_flips)]
    return flips + [0.0] * (num - num_flips), range(num)


def _resolved(
    metric: ComparedMetric,
    differences: list[float],
    clusters: Sequence[object],
    num_contexts: int,
    margin: float,
) -> tuple[float | None, int | None]:
    """What can be resolved tonight and the contexts that `margin` needs; scores that hardly differ by their exact bound."""
    num_differing = sum(it != 0 for it in differences)
    if num_differing < MIN_DISCORDANT_PAIRS:
        # Nothing is known of NLL then; and where it is not even noisy, an identical night passes as such.
        return (_none_of(num_contexts), _contexts_for_none(margin)) if metric is SCORE else (None, None)
    num_known = len(set(clusters))
    if num_known < 2:
        return None, None
    # The noise was measured on the baseline's contexts; a standard error shrinks with the root of their number.
    smallest = detectable_margin(differences, clusters) * math.sqrt(num_known / max(1, num_contexts))
    return smallest, _or_none(lambda: needed_clusters(differences, clusters, margin))


def _none_of(num_contexts: int) -> float:
    """Upper bound of the share of items that lose when none of so many did (Clopper-Pearson)."""
    return 1 - ONE_SIDED_ALPHA ** (1 / max(1, num_contexts))


def _contexts_for_none(margin: float) -> int:
    # The least n with 1 - alpha ** (1 / n) <= margin, solved for n; a score cannot lose more than 1.
    return max(MIN_CLUSTERS, math.ceil(math.log(ONE_SIDED_ALPHA) / math.log1p(-margin))) if margin < 1 else 1


def _or_none(number: Callable[[], int]) -> int | None:
    try:
        return number()
    except StatisticsError:
        return None
