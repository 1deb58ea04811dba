"""A night's rows against a baseline's: every check, and the one verdict a scheduler acts on.

Pure over result rows. A night fails if any check fails, passes if all checks that could be measured pass and quality is among
them, and is inconclusive otherwise. A night that lost too many items gets no such verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.analysis.comparability import (
    GATE_RUN_COLUMNS,
    ComparisonError,
    check_comparable,
    differences_to_tell,
)
from jobs.analysis.labels import LabelError, label_meant
from jobs.gate.check import BASELINE, TONIGHT, Check, task_sides, with_correction
from jobs.gate.cost import memory_checks, speed_checks
from jobs.gate.quality import quality_checks
from jobs.planning.work import RowKey
from jobs.results.schema import DONE_STATUSES, Row
from jobs.settings.errors import SettingsError
from jobs.settings.gate import GateSettings
from jobs.settings.schema import Settings
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT

NightOutcome = Literal["pass", "fail", "inconclusive", "too many failed"]
HEAVY_COLUMNS = ("answers", "versions", "prediction", "seconds")
"""What is read here beyond the columns that summaries need."""
_NUMBERS = ("score", "answer_nll")
_PERCENT = 100


@dataclass(frozen=True, slots=True)
class FailedItems:
    """Of `num_planned` gated (item x variant), those without a result tonight, or without a number the baseline has."""

    num_planned: int
    missing: tuple[tuple[str, str], ...]

    @property
    def percent(self) -> float:
        """Share of the missing ones, 0 to 100."""
        return _PERCENT * len(self.missing) / self.num_planned if self.num_planned else 0.0


@dataclass(frozen=True, slots=True)
class NightVerdict:
    """The verdict on a night. `told` are differences that may explain a loss, `skipped` variants the baseline lacks."""

    outcome: NightOutcome
    checks: tuple[Check, ...]
    failed: FailedItems
    told: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def having(self, verdict: str) -> list[Check]:
        """The checks that have this verdict."""
        return [check for check in self.checks if check.verdict == verdict]


def gated_labels(settings: Settings, gate: GateSettings) -> tuple[str, ...]:
    """The variants that are gated: those of the settings, and the full cache.

    Raises:
        SettingsError: a label the sweep does not have.
    """
    labels = list(dict.fromkeys([FULL, *(spec.label for spec in settings.variants)]))
    gateable = [label for label in labels if label not in (FULL_AA, NO_CONTEXT)]
    if gate.policies is None:
        return tuple(gateable)
    try:
        return tuple(dict.fromkeys(label_meant(name, gateable) for name in gate.policies))
    except LabelError as error:
        raise SettingsError(f"gate.policies: {error}") from error


def check_baseline(baseline: Sequence[Row], tonight: Sequence[Row], labels: Sequence[str]) -> None:
    """Refuse a baseline that asks, scores or computes something else; `tonight` may be rows that are only planned.

    Raises:
        ComparisonError: the list of what differs, or no gated variant in common.
    """
    # Stricter than a comparison by hand: with the attention backend alike too, a difference can only be the code's.
    check_comparable(baseline, tonight, names=(BASELINE, TONIGHT), run_columns=GATE_RUN_COLUMNS)
    known = dict.fromkeys(str(row["variant"]) for row in baseline)
    if not any(label in known for label in labels):
        raise ComparisonError(f"the baseline has none of {', '.join(labels)}; it has {', '.join(known)}")


def judge_night(
    baseline: Sequence[Row],
    tonight: Sequence[Row],
    planned: Sequence[RowKey],
    labels: Sequence[str],
    gate: GateSettings,
) -> NightVerdict:
    """Every check of the gated `labels`, corrected, and what the night is. Rows as `planned_rows` gives them."""
    failed = _failed_items(baseline, tonight, planned, labels)
    sides = task_sides(tonight, baseline)
    in_baseline = {row["variant"] for row in baseline}
    shared = [label for label in labels if label in in_baseline]
    checks = [
        *quality_checks(sides, shared, gate.margins),
        *memory_checks(sides, shared, gate.margins),
        *speed_checks(sides, shared, gate.margins),
    ]
    corrected = with_correction(checks, gate)
    skipped = [f"{label} is not in the baseline" for label in labels if label not in in_baseline]
    return NightVerdict(
        outcome=_outcome(corrected, failed, gate),
        checks=corrected,
        failed=failed,
        told=differences_to_tell(baseline, tonight, (BASELINE, TONIGHT)),
        skipped=tuple(skipped),
    )


def _outcome(checks: Sequence[Check], failed: FailedItems, gate: GateSettings) -> NightOutcome:
    # Before any verdict: items that fail are seldom the easy ones, so the rest says too much good of the night.
    if failed.percent > gate.max_failed_percent:
        return "too many failed"
    verdicts = {check.verdict for check in checks}
    if "fail" in verdicts:
        return "fail"
    # What the baseline never measured does not hold a pass back. Where no answer was judged there is none all the same:
    # bytes and seconds say nothing of the answers.
    is_quality_judged = any(check.kind == "quality" and check.verdict == "pass" for check in checks)
    return "pass" if verdicts <= {"pass", "not measured"} and is_quality_judged else "inconclusive"


def _failed_items(
    baseline: Sequence[Row], tonight: Sequence[Row], planned: Sequence[RowKey], labels: Sequence[str]
) -> FailedItems:
    before = {(row["item_id"], row["variant"]): row for row in baseline}
    now = {(row["item_id"], row["variant"]): row for row in tonight if row["status"] in DONE_STATUSES}
    # What was planned, not what has rows: a unit that never came back left none.
    wanted = [(key.item_id, key.label) for key in planned if key.label in labels]
    missing = [key for key in wanted if key not in now or _has_lost_numbers(now[key], before.get(key))]
    return FailedItems(len(wanted), tuple(missing))


def _has_lost_numbers(row: Row, before: Row | None) -> bool:
    # A scorer that fails leaves finished rows without a score, and those would drop out of every pair unseen.
    return before is not None and any(row[it] is None and before[it] is not None for it in _NUMBERS)
