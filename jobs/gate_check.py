"""What the gate says of one policy on one task in one number, and of a whole night.

Losses are positive where tonight is worse than the baseline, in the unit that a reader sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evaluators.statistics.paired_tests import holm
from jobs.settings.gate import GateSettings

Verdict = Literal["pass", "fail", "inconclusive", "not measured"]
Kind = Literal["quality", "memory", "speed"]
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
    weighed = replace(check, adjusted_p=adjusted_p, family_size=family_size)
    if check.verdict != "fail" or adjusted_p < gate.alpha:
        return weighed
    corrected = f"corrected for {family_size} comparisons" if gate.correction == "holm" else "uncorrected"
    reason = f"p = {adjusted_p:.3f}, {corrected}, is not below {gate.alpha:g}"
    return replace(weighed, verdict="inconclusive", reason=reason)
