"""One task as a table: every mean stands with its 95 % interval, and what is not known is a dash, never a 0."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from evaluators.statistics.skewed import TOO_FEW_CONTEXTS
from jobs.analysis.summary import MacroMean, TaskSummary
from jobs.analysis.variant_summary import VariantSummary
from jobs.reporting.cells import (
    BITS,
    BYTES,
    POSITIONS,
    READ,
    SLOTS,
    Cells,
    mean_cells,
    reads_otherwise,
    silent_columns,
    task_cells,
)
from jobs.reporting.notation import (
    NO_SPREAD,
    TO,
    UNKNOWN,
    Shown,
    percent,
    setting_in_words,
    shown_count,
    shown_name,
)
from jobs.results.grouping import Setting
from kvmerger.variants import REFERENCE_LABELS

WIDE_COLUMNS = 150
"""From this width on an interval stands beside its mean, below it on a line of its own."""

WHOLE_COLUMNS = 100
"""From this width on no column is left out."""
_BITS_COLUMNS = 120
"""Below this width bits stand under the slots, and bytes read under the table."""
_LONG_NAME, _LONG_IF_NARROW = 24, 20  # characters: longer names take their room from the numbers
_COUNT, TOP1 = "n", "top-1"
# Of `Cells`, in its order.
_HEADS = ("answer NLL", "recov.", "KL (nats)", TOP1, "score", BYTES, SLOTS, BITS, READ, POSITIONS)
_HIDDEN_IF_NARROW = (_COUNT, TOP1)
_HIDDEN = frozenset({POSITIONS})  # the page has room for them


def task_table(task: TaskSummary, width: int) -> Table:
    """The variants of one task, for a terminal of ``width`` columns.

    On a narrow one intervals go on a line of their own, and bits with them; on a very narrow one n and top-1 are left out,
    since numbers are hard to read once their cells fold.
    """
    is_wide, silent = width >= WIDE_COLUMNS, silent_columns(task.variants)
    narrow = hidden_columns(width)
    stacked = () if width >= _BITS_COLUMNS else (BITS, READ)
    hidden = silent.union(_HIDDEN, narrow, stacked)
    heads = [head for head in (_COUNT, *_HEADS) if head not in hidden]
    table = _empty_table(task.task, task.setting, heads)
    last_reference = [it.label for it in task.variants if it.label in REFERENCE_LABELS][-1:]
    for variant in task.variants:
        shown = _by_head(task_cells(variant))
        if stacked and BITS not in silent and shown[BITS].mean != UNKNOWN:
            shown[SLOTS] = Shown(shown[SLOTS].mean, f"{shown[BITS].mean} bit")
        numbers = {head: _cell(it, is_wide) for head, it in shown.items()}
        cells: dict[str, Text | str] = {_COUNT: shown_count(variant), **numbers}
        is_last_reference = [variant.label] == last_reference
        table.add_row(
            _name_cell(variant, width), *(cells[head] for head in heads), end_section=is_last_reference
        )
    return table


def hidden_columns(width: int) -> tuple[str, ...]:
    """The columns that a terminal of ``width`` columns has no room for."""
    return _HIDDEN_IF_NARROW if width < WHOLE_COLUMNS else ()


def read_note(task: TaskSummary, width: int) -> str:
    """What steps read of each variant, in a table that has no room for the column; "" where all read what they hold."""
    if width >= _BITS_COLUMNS or READ in silent_columns(task.variants):
        return ""
    shown = [
        f"{shown_name(it)} {percent(it.storage.read_share)}" for it in task.variants if reads_otherwise(it)
    ]
    return f"{READ} at each step, where that is another share than {BYTES} held: {', '.join(shown)}"


def overall_table(setting: Setting, means: Sequence[MacroMean], num_tasks: int, width: int) -> Table:
    """Means over tasks, each task weighing the same, for a terminal of ``width`` columns."""
    hidden = silent_columns(means).union(_HIDDEN, hidden_columns(width))
    heads = [head for head in _HEADS if head not in hidden]
    table = _empty_table(f"all {num_tasks} tasks, mean of the tasks' means", setting, heads)
    last_reference = [it.label for it in means if it.label in REFERENCE_LABELS][-1:]
    for mean in means:
        cells = _by_head(mean_cells(mean))
        name = shown_name(mean)  # without intervals beside it, only a narrow terminal lacks room for it
        shown = (cells[head].mean for head in heads)
        table.add_row(
            Text(name if width >= WHOLE_COLUMNS else broken_name(name, width)),
            *shown,
            end_section=[mean.label] == last_reference,
        )
    return table


def _by_head(cells: Cells) -> dict[str, Shown]:
    return dict(zip(_HEADS, cells, strict=True))


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
    """A column that goes on in the next line where there is no room.

    The widest columns give way first, which names are in all but the narrowest tables.
    """
    # Without folding, rich cuts off the ends of numbers and units, and half a number is another number.
    table.add_column(head, justify=justify, overflow="fold")


def broken_name(name: str, width: int) -> str:
    """The name on two lines where it is long for a terminal of `width` columns, the second beginning with its budget."""
    # Folded anywhere, the budget's number would be cut in two.
    longest = _LONG_NAME if width >= WHOLE_COLUMNS else _LONG_IF_NARROW
    return name.replace("@", "\n@", 1) if len(name) > longest else name


def _empty_table(title: str, setting: Setting, heads: Sequence[str]) -> Table:
    table = titled_table(title, setting_in_words(setting))
    for head in heads:
        add_folding_column(table, head, justify="right")
    return table


def _name_cell(variant: VariantSummary, width: int) -> Text:
    name = Text(broken_name(shown_name(variant), width))
    if variant.num_degenerate:
        share = "" if variant.num_degenerate == variant.num_finished else f" on {variant.num_degenerate}"
        name.append(f" (degenerate{share})", style="yellow")
    return name


def _cell(shown: Shown, is_wide: bool) -> Text:
    text = Text(shown.mean)
    if shown.ends and shown.ends not in (NO_SPREAD, TOO_FEW_CONTEXTS):  # the legend says why there is none
        # Four columns of intervals leave no room for " to " in 100 columns; nothing here is below 0, so no dash
        # is taken for a minus.
        ends = f" [{shown.ends}]" if is_wide else f"\n{shown.ends.replace(TO, '-')}"
        text.append(ends, style="dim")
    return text
