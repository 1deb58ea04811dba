"""What the gate says of one policy on one task in one number, and of a whole night.

Losses are positive where tonight is worse than the baseline, in the unit that a reader sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evaluators.statistics.paired_tests import holm
from jobs.analysis.comparability import run_key
from jobs.analysis.pairing import Pairs, pair
from jobs.analysis.variant_summary import NllScale
from jobs.reporting.notation import shown_p
from jobs.results.grouping import grouped, task_of
from jobs.results.schema import DONE_STATUSES, Row
from jobs.settings.gate import GateSettings

Verdict = Literal["pass", "fail", "inconclusive", "not measured"]
Kind = Literal["quality", "memory", "speed"]
TONIGHT, BASELINE = "this night", "the baseline"
_MAX_WORST_ITEMS = 3


@dataclass(frozen=True, slots=True)
class ItemLoss:
    """What one item lost, in its check's unit."""

    item_id: str
    loss: float


@dataclass(frozen=True, slots=True)
class Check:
    """One variant on one task in one metric, tonight against the baseline; `task` is None for the mean over tasks.

    `loss` is the mean over `num_items` pairs, `least_loss` and `most_loss` its one-sided 97.5 % bounds, None where there is
    no inference (memory is compared as measured) or all contexts lose the same (`has_no_spread`). `noise` is the A/A floor.
    `p_value` is of "no more is lost than the margin", `adjusted_p` Holm's over `family_size` of them. `worst_items` are
    the largest losses above 0, of `num_worse`.
    `reason` says why there is no verdict, or on what a pass rests where no test was needed.
    """

    kind: Kind
    metric: str
    unit: str
    label: str
    task: str | None
    margin: float
    verdict: Verdict
    reason: str = ""
    num_items: int = 0
    num_contexts: int = 0
    dropped: Mapping[str, int] | None = None
    loss: float | None = None
    least_loss: float | None = None
    most_loss: float | None = None
    has_no_spread: bool = False
    noise: float | None = None
    p_value: float | None = None
    adjusted_p: float | None = None
    family_size: int = 0
    worst_items: tuple[ItemLoss, ...] = ()
    num_worse: int = 0


def worst_of(item_ids: Sequence[str], losses: Sequence[float]) -> tuple[tuple[ItemLoss, ...], int]:
    """The items that lose most, largest loss first, and how many lose at all."""
    worse = [ItemLoss(item, loss) for item, loss in zip(item_ids, losses, strict=True) if loss > 0]
    # By id where losses are equal, so that the same night always names the same items.
    worse.sort(key=lambda it: (-it.loss, it.item_id))
    return tuple(worse[:_MAX_WORST_ITEMS]), len(worse)


def with_correction(checks: Sequence[Check], gate: GateSettings) -> tuple[Check, ...]:
    """Holm's correction over each family of p-values; a "fail" whose p is not below alpha becomes inconclusive."""
    families: dict[str, list[int]] = {}
    for place, check in enumerate(checks):
        if check.p_value is not None:
            families.setdefault("" if gate.family == "night" else check.metric, []).append(place)
    corrected = list(checks)
    for places in families.values():
        p_values = {place: checks[place].p_value or 0.0 for place in places}
        adjusted = {place: it.adjusted_p for place, it in holm(p_values, gate.alpha).items()}
        for place in places:
            p_value = adjusted[place] if gate.correction == "holm" else p_values[place]
            corrected[place] = _weighed(checks[place], p_value, len(places), gate)
    return tuple(corrected)


def _weighed(check: Check, adjusted_p: float, family_size: int, gate: GateSettings) -> Check:
    # A pass claims that little is lost and an open check claims nothing: only "fail" can be one false alarm among many.
    weighed = replace(check, adjusted_p=adjusted_p, family_size=family_size)
    if check.verdict != "fail" or adjusted_p < gate.alpha:
        return weighed
    corrected = f"corrected for {family_size} comparisons" if gate.correction == "holm" else "uncorrected"
    reason = f"p = {shown_p(adjusted_p)}, {corrected}, is not below {gate.alpha:g}"
    return replace(weighed, verdict="inconclusive", reason=reason)


@dataclass(frozen=True, slots=True)
class TaskSides:
    """All rows of one task by label. `has_scale`: in the baseline, the full cache beats having no context."""

    task: str
    tonight: Mapping[str, Sequence[Row]]
    baseline: Mapping[str, Sequence[Row]]
    has_scale: bool

    def pairs(self, label: str, column: str) -> Pairs:
        """Tonight's values of a variant as `policy`, the baseline's as `reference`."""
        tonight, baseline = self.tonight.get(label, ()), self.baseline.get(label, ())
        return pair(tonight, baseline, column, names=(TONIGHT, BASELINE))

    def why_not_measured(self, label: str, column: str) -> str:
        """Why the baseline has no such number of this variant; empty where it has one."""
        rows = [row for row in self.baseline.get(label, ()) if row["status"] in DONE_STATUSES]
        if not rows:
            return "the baseline has no such variant here"
        if any(row[column] is not None for row in rows):
            return ""
        # A row says why it has no number in a column of its own, `score_reason` for `score`, where there is one.
        return str(rows[0].get(f"{column}_reason") or f"the baseline has no {column}")


def task_sides(tonight: Sequence[Row], baseline: Sequence[Row]) -> list[TaskSides]:
    """One for each task of tonight, in its order; rows of another model or query mode never meet."""
    keys = {run_key(row) for row in tonight}
    here, there = (
        grouped(rows, task_of) for rows in (tonight, [row for row in baseline if run_key(row) in keys])
    )
    found = []
    for task, rows in here.items():
        by_label = [grouped(of, lambda row: str(row["variant"])) for of in (rows, there.get(task, []))]
        # The baseline's scale alone: a night that breaks the full cache must not take its own verdict away.
        found.append(TaskSides(task, by_label[0], by_label[1], NllScale.of(by_label[1]).is_usable))
    return found
