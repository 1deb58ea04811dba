"""One task as a table: every mean stands with its 95 % interval, and what is not known is a dash, never a 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from evaluators.statistics.intervals import Interval, proportion_interval
from jobs.analysis.summary import MacroMean, TaskSummary
from jobs.analysis.variant_summary import VariantSummary
from jobs.results.grouping import Setting
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT, REFERENCE_LABELS

UNKNOWN = "-"
_BYTES_PER_UNIT = 1024
_SHOWN_NAMES = {FULL: "full cache", FULL_AA: "full again (A/A noise)", NO_CONTEXT: "no context (tail alone)"}
_HEADS = ("n", "answer NLL", "recov.", "KL (nats)", "top-1", "score", "kept", "KV bytes")
_WIDE_COLUMNS = 140
"""From this width on an interval stands beside its mean, below it on a line of its own."""
_ROOMY_COLUMNS = 100
_HIDDEN_IF_NARROW = ("n", "top-1")
_MEAN_HEADS = ("answer NLL", "recov.", "KL (nats)", "top-1", "score", "kept", "KV bytes")


class Named(Protocol):
    """A variant on a task, over tasks, or beside a published figure."""

    @property
    def label(self) -> str: ...
    @property
    def shown_label(self) -> str: ...


def task_table(task: TaskSummary, width: int) -> Table:
    """The variants of one task, for a terminal of ``width`` columns.

    On a narrow one intervals go on a line of their own; on a very narrow one n and top-1 are left out, since numbers are
    hard to read once their cells fold.
    """
    is_wide, hidden = width >= _WIDE_COLUMNS, _HIDDEN_IF_NARROW if width < _ROOMY_COLUMNS else ()
    table = _empty_table(task.task, task.setting, [head for head in _HEADS if head not in hidden])
    for variant in task.variants:
        cells = {
            "n": _count_cell(variant),
            "answer NLL": _interval_cell(variant.answer_nll, is_wide, _nats, lowest=0.0),
            "recov.": _plain(variant.nll_recovered, "{:.2f}"),
            "KL (nats)": _interval_cell(variant.kl, is_wide, _nats, lowest=0.0),
            "top-1": _interval_cell(
                variant.top1_agreement, is_wide, "{:.2f}".format, lowest=0.0, highest=1.0
            ),
            "score": _score_cell(variant, is_wide),
            "kept": _plain(variant.kept_ratio, "{:.1%}"),
            "KV bytes": human_bytes(variant.kv_bytes),
        }
        shown = [cells[head] for head in _HEADS if head not in hidden]
        is_last_reference = variant.label == _last_reference(task.variants)
        table.add_row(_name_cell(variant), *shown, end_section=is_last_reference)
    return table


def overall_table(setting: Setting, means: Sequence[MacroMean], num_tasks: int) -> Table:
    """Means over tasks, each task weighing the same."""
    table = _empty_table(f"all {num_tasks} tasks, mean of the tasks' means", setting, _MEAN_HEADS)
    last_reference = [it.label for it in means if it.label in REFERENCE_LABELS][-1:]
    for mean in means:
        table.add_row(
            Text(shown_name(mean)),
            _plain(mean.answer_nll, "{:.3f}"),
            _plain(mean.nll_recovered, "{:.2f}"),
            _plain(mean.kl, "{:.3f}"),
            _plain(mean.top1_agreement, "{:.2f}"),
            _plain(None if mean.score is None else 100 * mean.score, "{:.1f}"),
            _plain(mean.kept_ratio, "{:.1%}"),
            human_bytes(mean.kv_bytes),
            end_section=[mean.label] == last_reference,
        )
    return table


def human_bytes(num_bytes: float | None) -> str:
    """Bytes in the largest binary unit that leaves at least 1, with about three digits."""
    if num_bytes is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < _BYTES_PER_UNIT:
            return f"{num_bytes:.1f} {unit}" if unit != "B" else f"{num_bytes:.0f} B"
        num_bytes /= _BYTES_PER_UNIT
    return f"{num_bytes:.1f} TiB"


def shown_name(named: Named) -> str:
    """How a variant is called in the tables: the references in words, outcomes by what they kept."""
    return _SHOWN_NAMES.get(named.label, named.shown_label)


def _empty_table(title: str, setting: Setting, heads: Sequence[str]) -> Table:
    where = ", ".join(
        part for part in (setting.model_name, setting.query_mode.replace("_", "-"), setting.execution) if part
    )
    table = titled_table(title, where)
    for head in heads:
        add_folding_column(table, head, justify="right")
    return table


def titled_table(title: str, where: str) -> Table:
    """A table of variants with their column alone; `where` says under what setting."""
    table = Table(
        title=Text.assemble((title, "bold"), (f"  {where}", "dim")),
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    add_folding_column(table, "variant")
    return table


def add_folding_column(table: Table, head: str, justify: JustifyMethod = "left") -> None:
    """A column that goes on in the next line where there is no room; without wrapping, rich cuts numbers and units off.

    The widest columns give way first, which names are in all but the narrowest tables.
    """
    table.add_column(head, justify=justify, overflow="fold")


def _name_cell(variant: VariantSummary) -> Text:
    name = Text(shown_name(variant))
    if variant.num_degenerate:
        share = "" if variant.num_degenerate == variant.num_finished else f" on {variant.num_degenerate}"
        name.append(f" (degenerate{share})", style="yellow")
    return name


def _count_cell(variant: VariantSummary) -> str:
    is_whole = variant.num_finished == variant.num_rows
    return str(variant.num_rows) if is_whole else f"{variant.num_finished}/{variant.num_rows}"


def _score_cell(variant: VariantSummary, is_wide: bool) -> Text | str:
    if variant.score is None:
        return UNKNOWN
    if variant.num_right is not None:
        num_items = variant.score.num_items
        exact = proportion_interval(variant.num_right, num_items)
        return _with_ends(Text(f"{variant.num_right} of {num_items}"), exact, is_wide, "{:.0%}".format)
    return _interval_cell(variant.score, is_wide, lambda it: f"{100 * it:.1f}", lowest=0.0, highest=1.0)


def _interval_cell(
    interval: Interval | None,
    is_wide: bool,
    show: Callable[[float], str],
    lowest: float,
    highest: float = float("inf"),
) -> Text | str:
    """Mean and interval; the ends are cut to the values the quantity can take."""
    if interval is None:
        return UNKNOWN
    return _with_ends(Text(show(interval.mean)), interval, is_wide, show, lowest, highest)


def _with_ends(
    text: Text,
    interval: Interval,
    is_wide: bool,
    show: Callable[[float], str],
    lowest: float = 0.0,
    highest: float = float("inf"),
) -> Text:
    if interval.ends is not None:
        low, high = max(interval.ends[0], lowest), min(interval.ends[1], highest)
        ends = f" [{show(low)}, {show(high)}]" if is_wide else f"\n{show(low)}-{show(high)}"
        text.append(ends, style="dim")
    return text


def _nats(value: float) -> str:
    return f"{value:.3f}"


def _plain(value: float | None, layout: str) -> str:
    return UNKNOWN if value is None else layout.format(value)


def _last_reference(variants: Sequence[VariantSummary]) -> str | None:
    return next((it.label for it in reversed(variants) if it.label in REFERENCE_LABELS), None)
