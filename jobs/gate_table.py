"""Every check of a night as a table: a loss never without what it may be, and a verdict never without its margin."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.gate import NightVerdict
from jobs.gate_check import Check
from jobs.gate_log import change, where
from jobs.report_table import UNKNOWN, titled_table

_STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow", "not measured": "dim"}
_LEGEND = (
    "change: tonight - baseline, mean over the items, and between which values it lies (one-sided 97.5 % each; memory is "
    "measured, not inferred); p: of the loss being no larger than the margin, corrected over the family"
)


def verdict_table(verdict: NightVerdict) -> RenderableType:
    """All checks that have a number, variant by variant."""
    table = titled_table("tonight against the baseline", "losses beyond the margin fail")
    for head in ("task", "metric"):
        table.add_column(head, overflow="fold")
    for head in ("items", "change", "margin", "p"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    shown = [check for check in verdict.checks if check.loss is not None]
    labels = list(dict.fromkeys(check.label for check in shown))
    shown.sort(key=lambda check: labels.index(check.label))
    for place, check in enumerate(shown):
        is_last = place + 1 == len(shown) or shown[place + 1].label != check.label
        is_first = place == 0 or shown[place - 1].label != check.label
        _add_row(table, check, check.label if is_first else "", is_last)
    return Group(table, Text(_LEGEND, style="dim"))


def _add_row(table: Table, check: Check, label: str, is_last: bool) -> None:
    table.add_row(
        label,
        where(check),
        check.metric,
        str(check.num_items),
        _change(check),
        f"{check.margin:g} {check.unit}",
        UNKNOWN if check.adjusted_p is None else f"{check.adjusted_p:.3f}",
        _verdict(check),
        end_section=is_last,
    )


def _change(check: Check) -> Text:
    assert check.loss is not None
    text = Text(change(check, check.loss))
    if check.least_loss is not None and check.most_loss is not None:
        ends = sorted((-it if check.unit == "points" else it) for it in (check.least_loss, check.most_loss))
        digits = ".3g" if check.unit == "nats" else ".1f"
        text.append(f"\n{ends[0]:+{digits}} to {ends[1]:+{digits}}", style="dim")
    return text


def _verdict(check: Check) -> Text:
    text = Text(check.verdict, style=_STYLES[check.verdict])
    if check.reason:
        text.append(f"\n{check.reason}", style="dim")
    return text
