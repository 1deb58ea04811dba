"""A comparison as tables: every difference with its interval, and under each table why verdicts are inconclusive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evaluators.statistics.noninferiority import MarginResult
from jobs.analysis.comparison import Comparison
from jobs.analysis.differences import HOLDS_ZERO, NOT_SIGNIFICANT, Difference
from jobs.analysis.pairing import METRICS
from jobs.reporting.cells import BYTES
from jobs.reporting.notation import human_bytes, percent, shown_difference, shown_mode, shown_p, shown_value
from jobs.reporting.table import add_folding_column, broken_name, titled_table
from jobs.results.grouping import Setting

_ROOMY_COLUMNS = 100
_BYTES_HEAD = f"{BYTES} A, B"
_HIDDEN_IF_NARROW = ("pairs", _BYTES_HEAD)
_LEAST_TOLD_SHARE = 0.01  # policies of one budget end up a few slots apart
_VERDICT_STYLES = {"better": "green", "worse": "red", "pass": "green", "fail": "red"}
_LEGEND = (
    "score: points of 100, more is better; NLL: nats per token of the gold answer, less is better; both over the pairs. "
    "B - A with its 95 % interval (no spread: all differences are equal, so there is none); p: Holm's, over the variants x "
    "tasks of a metric; bytes: share held of the full cache's keys and values, and how many, A over B"
)


def render_comparison(comparison: Comparison, margin_points: float, width: int) -> RenderableType:
    """Tables, what stands against verdicts, warnings and the sum of pairs, for a terminal of `width` columns."""
    parts: list[RenderableType] = [*_heading(comparison), Text()]
    for setting in dict.fromkeys(it.setting for it in comparison.differences):
        of_setting = [
            (it, comparison.margins.get(index))
            for index, it in enumerate(comparison.differences)
            if it.setting == setting
        ]
        # The mean over tasks (None) comes last, and None does not sort with text.
        for task in sorted({it.task for it, _ in of_setting}, key=lambda task: (task is None, task or "")):
            shown = [(it, margin) for it, margin in of_setting if it.task == task]
            parts += [_table(shown, setting, width), *_notes([it for it, _ in shown]), Text()]
    if width < _ROOMY_COLUMNS:
        hidden = f"not shown in {width} columns: {', '.join(_HIDDEN_IF_NARROW)}; --width {_ROOMY_COLUMNS} shows all"
        parts.append(Text(hidden, style="yellow"))
    legend = f"{_LEGEND}; margin: is the score of B at most {margin_points:g} points below A's (open: not resolved)"
    return Group(*parts, Text(legend, style="dim"), Text(), *_sums(comparison))


def _heading(comparison: Comparison) -> Iterator[Text]:
    yield Text.assemble(("A  ", "bold"), comparison.name_a)
    yield Text.assemble(("B  ", "bold"), comparison.name_b)
    for warning in comparison.warnings:
        yield Text(f"not the same: {warning}", style="yellow")
    for skipped in comparison.skipped:
        yield Text(f"not compared: {skipped}", style="yellow")


def _table(rows: Sequence[tuple[Difference, MarginResult | None]], setting: Setting, width: int) -> Table:
    first = rows[0][0]
    title = first.task or f"mean over {len(first.tasks)} tasks with a scale"
    table = titled_table(title, f"{setting.model_name}, {shown_mode(setting)}")
    is_roomy = width >= _ROOMY_COLUMNS
    heads = ("", "pairs", "A", "B", "B - A", "p", "verdict", _BYTES_HEAD)
    shown_heads = [head for head in heads if is_roomy or head not in _HIDDEN_IF_NARROW]
    for head in shown_heads:
        add_folding_column(table, head, "left" if head in ("", "verdict") else "right")
    ordered = sorted(rows, key=lambda pair: _place(pair[0], [it for it, _ in rows]))
    labels = [it.label for it, _ in ordered]
    for index, (it, margin) in enumerate(ordered):
        is_first = it.label not in labels[:index]
        # One variant has a row per metric: its name stands in the first, where its bytes are shares, and as bytes in the
        # second; the rule is drawn under its last row.
        cells = {**_cells(it, margin), _BYTES_HEAD: _shares(it) if is_first else _bytes(it)}
        is_last = it.label not in labels[index + 1 :]
        table.add_row(
            broken_name(it.label, width) if is_first else "",
            *(cells[head] for head in shown_heads),
            end_section=is_last,
        )
    return table


def _cells(it: Difference, margin: MarginResult | None) -> dict[str, Text | str]:
    return {
        "": it.metric.name,
        "pairs": str(it.num_pairs),
        "A": shown_value(it.metric, it.reference_mean),
        "B": shown_value(it.metric, it.policy_mean),
        "B - A": _difference(it),
        "p": shown_p(it.adjusted_p),
        "verdict": _verdict(it, margin),
    }


def _shares(it: Difference) -> str:
    return f"{percent(it.reference_storage.held_share)}\n{percent(it.policy_storage.held_share)}"


def _bytes(it: Difference) -> str:
    return f"{human_bytes(it.reference_storage.held_bytes)}\n{human_bytes(it.policy_storage.held_bytes)}"


def _place(it: Difference, rows: Sequence[Difference]) -> tuple[int, int]:
    """Variants in the order they come, their metrics together."""
    labels = list(dict.fromkeys(row.label for row in rows))
    return labels.index(it.label), METRICS.index(it.metric)


def _difference(it: Difference) -> Text:
    shown = shown_difference(it.metric, it.paired.interval if it.paired else None)
    text = Text(shown.mean)
    if shown.ends:
        text.append(f"\n{shown.ends}", style="dim")
    return text


def _verdict(it: Difference, margin: MarginResult | None) -> Text:
    """The difference's verdict, and under it the margin's; "open" is a margin that is not resolved."""
    text = Text(it.verdict, style=_VERDICT_STYLES.get(it.verdict, "dim"))
    if margin is not None:
        short = "open" if margin.verdict == "inconclusive" else margin.verdict
        text.append(f"\nmargin: {short}", style=_VERDICT_STYLES.get(margin.verdict, "dim"))
    return text


def _notes(rows: Sequence[Difference]) -> Iterator[Text]:
    """Why verdicts are inconclusive where the numbers do not show it, the noise floor, and flips."""
    reasons: dict[str, list[str]] = {}
    for it in rows:
        # A large p and an interval over 0 stand in the table itself; only other reasons need words.
        if it.reason not in ("", NOT_SIGNIFICANT, HOLDS_ZERO):
            reasons.setdefault(it.reason, []).append(f"{it.label} ({it.metric.name})")
    for reason, names in reasons.items():
        whom = "all" if len(names) == len(rows) else ", ".join(names)
        yield Text(f"inconclusive, {whom}: {reason}", style="yellow")
    yield from _other_bytes(rows)
    for metric in METRICS:
        floors = [it.floor for it in rows if it.metric is metric and it.floor is not None]
        if floors:
            # The A/A pairs are the task's, whatever the variant: every row carries the same floor.
            size = f"{metric.unit_factor * floors[0].size:.3g}"
            noise = floors[0].difference
            flips = f"{noise.num_higher + noise.num_lower} of {noise.interval.num_items} items differ at all"
            yield Text(f"A/A noise of the {metric.name}: up to {size}; {flips}", style="dim")
    flips_of = [(it.label, it.flips) for it in rows if it.flips is not None and any(it.flips)]
    if flips_of:
        told = ", ".join(f"{label} {lost} lost {won} won" for label, (lost, won) in flips_of)
        yield Text(f"flips (right in one of them only): {told}", style="dim")


def _other_bytes(rows: Sequence[Difference]) -> Iterator[Text]:
    """Which variants are not compared at equal bytes: of those held, and of those read where they are others."""
    # A variant has a row per metric, over almost the same pairs.
    of_label = {it.label: it for it in reversed(rows)}
    held, read = [], []
    for label, it in reversed(of_label.items()):
        a, b = it.reference_storage, it.policy_storage
        if _is_far(a.held_share, b.held_share):
            held.append(f"{label} {percent(a.held_share)} in A, {percent(b.held_share)} in B")
        is_read_alone = _is_far(a.held_share, a.read_share) or _is_far(b.held_share, b.read_share)
        if is_read_alone and _is_far(a.read_share, b.read_share):
            read.append(f"{label} {percent(a.read_share)} in A, {percent(b.read_share)} in B")
    for what, told in (("held", held), ("read at each step", read)):
        if told:
            yield Text(f"{BYTES} {what} differ: {'; '.join(told)}", style="yellow")


def _is_far(share: float | None, other: float | None) -> bool:
    return share is not None and other is not None and abs(share - other) >= _LEAST_TOLD_SHARE


def _sums(comparison: Comparison) -> Iterator[Text]:
    for metric in METRICS:
        num_pairs, dropped = comparison.sum_of(metric)
        lost = "".join(f" + {number} {reason}" for reason, number in sorted(dropped.items()))
        total = num_pairs + sum(dropped.values())
        yield Text(f"{metric.name}: {total} items x variants = {num_pairs} pairs{lost}", style="bold")
