"""Published figures beside ours, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from jobs.published_beside import PublishedBeside
from jobs.report_numbers import ends_in_percent, plain
from jobs.report_table import UNKNOWN, add_folding_column, shown_name, titled_table

_ROOMY_COLUMNS = 100
"""Below this width our score stands without its interval."""
_NO_BUDGET = "full"


def render_published(beside: PublishedBeside, width: int) -> Iterator[RenderableType]:
    """The table, what its marks mean and what differs, for ``width`` columns."""
    where = f"{beside.source}, {beside.published_model}; ours: {beside.our_model}"
    table = titled_table(f"published beside ours: {beside.table}", where)
    add_folding_column(table, "task")
    has_ends = width >= _ROOMY_COLUMNS
    for head in ("n", "kept", "ours", *(["95 %"] if has_ends else []), "published", "at"):
        add_folding_column(table, head, "right")
    for figure in beside.figures:
        table.add_row(
            Text(shown_name(figure)),
            figure.task.rpartition("/")[2],
            str(figure.num_items),
            plain(figure.kept_ratio, "{:.1%}"),
            f"{figure.ours:.2f}",
            *([Text(ends_in_percent(figure.interval) or UNKNOWN, style="dim")] if has_ends else []),
            Text(f"{figure.published:.2f} [{figure.mark}]"),
            _NO_BUDGET if figure.budget is None else f"{figure.budget:.0%}",
        )
    yield table
    marks = "; ".join(f"[{mark}]: read {words}" for mark, words in beside.read_in.items())
    yield Text(
        f"{marks}; published is over the whole task, ours over n items: shown, not compared", style="dim"
    )
    for words in beside.differs:
        yield Text(f"- {words}", style="dim")
