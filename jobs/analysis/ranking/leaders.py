"""The best policy in each number, and those that the rows do not tell apart from it.

With 95 % confidence the policy that is truly best is the leader or one of those beside it: a policy is ruled out only where
the interval of its difference to the leader, at 95 % for all rivals together, lies on the wrong side of 0, and the true best
has no more rivals that could rule it out by chance (Hsu 1984, with Bonferroni's bound in place of a joint distribution).
Each number is a statement of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluators.statistics.intervals import paired_difference
from evaluators.statistics.macro_average import TaskPairs, macro_difference
from evaluators.statistics.noninferiority import too_few_reason
from evaluators.statistics.paired_tests import ALPHA, is_binary, paired_test
from jobs.analysis.pairing import ComparedMetric
from jobs.results.grouping import task_of
from jobs.results.schema import DONE_STATUSES, Row

KL = ComparedMetric("kl_mean", "KL", is_higher_better=False, unit_factor=1)
TOP1 = ComparedMetric("top1_agreement", "top-1", is_higher_better=True, unit_factor=1)

_ByTask = dict[str, dict[str, float]]  # task → item → value


@dataclass(frozen=True, slots=True)
class Leader:
    """The best of one number. `close` are labels not told apart from it; `why` says why nothing can be, "" where it can."""

    metric: ComparedMetric
    label: str
    close: frozenset[str]
    why: str


def leader(
    rows: Sequence[Row], metric: ComparedMetric, means: Mapping[str, float], no_verdict: str = ""
) -> Leader | None:
    """The leader among the labels of `means`, which are what readers see; None where there is none.

    `rows` are of one setting. Of several tasks each weighs the same. `no_verdict` is a reason why no difference on these
    tasks is a verdict at all; then nothing is tested.
    """
    if not means:
        return None
    best = min(means, key=lambda label: (-metric.gain(means[label]), label))
    rivals = [label for label in means if label != best]
    if no_verdict:
        return Leader(metric, best, frozenset(rivals), no_verdict)
    values, clusters = _values(rows, metric.column)
    found = {
        label: _told(values.get(label, {}), values.get(best, {}), clusters, metric, len(rivals))
        for label in rivals
    }
    reasons = {reason for _, reason in found.values()}
    close = frozenset(label for label, (is_worse, _) in found.items() if not is_worse)
    why = reasons.pop() if len(reasons) == 1 and len(close) == len(rivals) else ""
    return Leader(metric, best, close, why)


def _told(
    policy: _ByTask, best: _ByTask, clusters: Mapping[str, str], metric: ComparedMetric, num_rivals: int
) -> tuple[bool, str]:
    """Whether the policy is measurably worse than the best, and what there is too little of to tell."""
    pairs = _pairs(policy, best, clusters)
    if not pairs:
        return False, "no item has both numbers"
    error = ALPHA / num_rivals
    is_single = len(pairs) == 1
    only = pairs[0]
    difference = (
        paired_difference(only.a, only.b, only.clusters, 1 - error)
        if is_single
        else macro_difference(pairs, 1 - error)
    )
    if reason := too_few_reason(difference):
        return False, reason
    is_worse = metric.gain(difference.interval.mean) < 0 and difference.verdict != "inconclusive"
    if is_worse and is_single and is_binary(only.a) and is_binary(only.b):
        # Student's t is too sure of a few flips; McNemar's exact test costs nothing here.
        return paired_test(only.a, only.b, only.clusters).p_value < error, ""
    return is_worse, ""


def _pairs(policy: _ByTask, best: _ByTask, clusters: Mapping[str, str]) -> list[TaskPairs]:
    """A task each, on the items both have; empty where a task has none, since a mean over fewer tasks is another number."""
    found = []
    for task in policy.keys() | best.keys():
        of_policy, of_best = policy.get(task, {}), best.get(task, {})
        # Sorted, since resampling draws by position: the same rows in another order must give the same interval.
        common = sorted(of_policy.keys() & of_best.keys())
        if not common:
            return []
        found.append(
            (
                task,
                TaskPairs(
                    [of_policy[item] for item in common],
                    [of_best[item] for item in common],
                    [clusters[item] for item in common],
                ),
            )
        )
    return [pairs for _, pairs in sorted(found, key=lambda it: it[0])]


def _values(rows: Sequence[Row], column: str) -> tuple[dict[str, _ByTask], dict[str, str]]:
    """Label → its finite values, and item → context."""
    values: dict[str, _ByTask] = {}
    clusters: dict[str, str] = {}
    for row in rows:
        if row["status"] in DONE_STATUSES and row[column] is not None and math.isfinite(row[column]):
            of_label = values.setdefault(row["variant"], {})
            of_label.setdefault(task_of(row), {})[row["item_id"]] = row[column]
            clusters[row["item_id"]] = row["cluster_id"]
    return values, clusters
