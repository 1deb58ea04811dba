"""Every check of a night as a table: each change with its bounds, each verdict with its margin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.gate.check import Check
from jobs.gate.judge import NightVerdict
from jobs.gate.log import change, signed_change, where
from jobs.reporting.notation import NO_SPREAD, TO, shown_p
from jobs.reporting.table import add_folding_column, titled_table

_STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow", "not measured": "dim"}
_MAX_NAMED = 3
_WIDE_COLUMNS = 120
"""From this width on bounds stand beside their change, below it on a line of their own."""
_ROOMY_COLUMNS = 100
"""Below this width a task has a line for its benchmark and one for its name."""
_LEGEND = (
    "change: this night - baseline, mean over the items, and between which values it lies (one-sided 97.5 % each; memory is "
    "measured, not inferred; no spread: all contexts changed alike, so there are none); p: of the loss being no larger than "
    "the margin, corrected over the family"
)


def verdict_table(verdict: NightVerdict, width: int) -> RenderableType:
    """All checks that have a number, variant by variant, and under them why some have no verdict or needed no test.

    For `width` columns, such as the 100 of a mail from cron.
    """
    table = titled_table("this night against the baseline", "")
    add_folding_column(table, "metric")
    for head in ("items", "change", *([""] if width >= _WIDE_COLUMNS else []), "margin", "p"):
        add_folding_column(table, head, "right")
    add_folding_column(table, "verdict")
    shown = [check for check in verdict.checks if check.loss is not None]
    labels = dict.fromkeys(check.label for check in shown)
    for label in labels:
        table.add_row(Text(label, style="bold"))
        of_label = [check for check in shown if check.label == label]
        for place, check in enumerate(of_label):
            is_other_task = place == 0 or of_label[place - 1].task != check.task
            task = _task(check, width) if is_other_task else ""
            _add_row(table, check, task, width, place + 1 == len(of_label))
    return Group(table, *_notes(shown), Text(_LEGEND, style="dim"))


def _task(check: Check, width: int) -> str:
    name = where(check)
    return f"  {name}" if width >= _ROOMY_COLUMNS else "  " + "/\n  ".join(name.rsplit("/", 1))


def _add_row(table: Table, check: Check, task: str, width: int, is_last: bool) -> None:
    assert check.loss is not None
    size, ends = Text(change(check, check.loss)), _ends(check)
    table.add_row(
        Text(task),
        check.metric,
        str(check.num_items),
        *([size, ends] if width >= _WIDE_COLUMNS else [Text("\n").join([size, *([ends] if ends else [])])]),
        f"{check.margin:g} {check.unit}",
        shown_p(check.adjusted_p),
        Text(check.verdict, style=_STYLES[check.verdict]),
        end_section=is_last,
    )


def _ends(check: Check) -> Text:
    if check.has_no_spread:
        return Text(NO_SPREAD, style="dim")
    if check.least_loss is None or check.most_loss is None:
        return Text()
    losses = (check.least_loss, check.most_loss)
    # The change of a score is minus its loss: its lower end is the largest loss.
    ends = reversed(losses) if check.unit == "points" else losses
    return Text(TO.join(signed_change(check, loss) for loss in ends), style="dim")


def _notes(checks: Sequence[Check]) -> Iterator[Text]:
    """Reasons, each with the checks it is of."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for check in checks:
        if check.reason:
            name = f"{check.label} {where(check)} {check.metric}"
            reasons.setdefault((check.verdict, check.reason), []).append(name)
    for (verdict, reason), names in reasons.items():
        whom = f"{len(names)} checks" if len(names) > _MAX_NAMED else ", ".join(names)
        yield Text(f"{verdict}, {whom}: {reason}", style=_STYLES[verdict])
