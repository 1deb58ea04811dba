"""What the tables of simulations have in common: how they look, and how a share of worlds is written."""

from __future__ import annotations

from rich import box
from rich.table import Table

from evaluators.statistics.intervals import proportion_interval

_PERCENT = 100


def table_of(title: str, first: str) -> Table:
    """A table without a line around it, and its first column."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column(first, no_wrap=True)
    return table


def share_of(number: int, total: int) -> tuple[str, str, float]:
    """A share in per cent, its Clopper-Pearson interval, and where that begins, as a number from 0 to 1."""
    interval = proportion_interval(number, total)
    assert interval.low is not None and interval.high is not None
    ends = f"{_PERCENT * interval.low:.2f}-{_PERCENT * interval.high:.2f}"
    return f"{_PERCENT * interval.mean:.2f}", ends, interval.low
