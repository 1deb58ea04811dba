"""Memory over time: the bytes of K/V each variant really held, from prefill through its last new token."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jobs.analysis.summary import TaskSummary, series_name
from jobs.analysis.variant_summary import VariantSummary
from jobs.reporting.figures.style import FAINT, INK, SeriesStyle, look, new_panel, to_svg
from jobs.results.grouping import grouped
from jobs.results.schema import DONE_STATUSES, Row
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT

_MIB = 2**20
_NUM_MARKERS = 5
_SAME_AS_FULL = FULL_AA  # its bytes are the full cache's own


@dataclass(frozen=True, slots=True)
class TraceLine:
    """One variant's bytes at each step; step 0 is prefill. `series` is "" for a reference row."""

    label: str
    series: str
    steps: tuple[int, ...]
    live_bytes: tuple[int, ...]
    reserved_bytes: tuple[int, ...]

    @property
    def first_decode_bytes(self) -> int:
        """Live bytes at the first step after prefill, or at prefill when nothing was decoded."""
        return self.live_bytes[min(1, len(self.live_bytes) - 1)]


@dataclass(frozen=True, slots=True)
class TracePanel:
    """The item of median length of one task."""

    task: str
    item_id: str
    context_tokens: int
    lines: tuple[TraceLine, ...]


def trace_panel(
    task: TaskSummary, rows: Iterable[Row], name_of: Callable[[VariantSummary], str]
) -> TracePanel | None:
    """The traces of the item whose prompt is the median one among those most variants finished.

    `name_of` is how readers know a variant.
    """
    traced = [
        row
        for row in rows
        if row["status"] in DONE_STATUSES and row["trace"] not in (None, "[]") and row["context_tokens"]
    ]
    by_item = grouped(traced, lambda row: row["item_id"])
    if not by_item:
        return None
    # Of items that a variant failed on, its line would be missing: only the most complete ones are asked.
    most = max(map(len, by_item.values()))
    whole = {item: group for item, group in by_item.items() if len(group) == most}
    # The low median is an item's own length; the mean of two middle ones would be nobody's.
    middle = statistics.median_low(group[0]["context_tokens"] for group in whole.values())
    item_id, chosen = next(
        (item, group) for item, group in whole.items() if group[0]["context_tokens"] == middle
    )
    by_label = {row["variant"]: row for row in chosen}
    lines = tuple(
        _line(name_of(variant), _series_of(variant.label, series_name(variant)), by_label[variant.label])
        for variant in task.variants
        if variant.label in by_label and variant.label != _SAME_AS_FULL
    )
    return TracePanel(task.task, item_id, middle, lines) if lines else None


def draw(panel: TracePanel, styles: Mapping[str, SeriesStyle], name: str) -> Markup:
    """The panel as SVG: live bytes solid, reserved ones dotted."""
    with look():
        figure, axes = new_panel()
        for line in panel.lines:
            color = styles[line.series].color if line.series else INK
            marker = styles[line.series].marker if line.series else ""
            every = max(1, len(line.steps) // _NUM_MARKERS)
            axes.plot(
                line.steps,
                _mib(line.live_bytes),
                color=color,
                marker=marker,
                markevery=every,
                markersize=5,
                linewidth=1.5,
            )
            # From step 1 on: at prefill nothing is reserved yet for tokens to come.
            axes.plot(line.steps[1:], _mib(line.reserved_bytes[1:]), color=color, linestyle=":", linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_xlabel("step (0: prefill, then one a new token)")
        axes.set_ylabel("K/V held (MiB)")
        axes.tick_params(length=0, color=FAINT)
        return to_svg(figure, name, f"memory over time, {panel.task}", _described(panel.lines))


def _series_of(label: str, series: str) -> str:
    return "" if label in (FULL, NO_CONTEXT) else series


def _line(label: str, series: str, row: Row) -> TraceLine:
    steps, _, live, reserved = zip(*json.loads(row["trace"]), strict=True)
    return TraceLine(label, series, steps, live, reserved)


def _mib(num_bytes: Sequence[int]) -> list[float]:
    return [value / _MIB for value in num_bytes]


def _described(lines: Iterable[TraceLine]) -> str:
    return "; ".join(
        f"{it.label}: {it.live_bytes[0] / _MIB:.1f} MiB at prefill, {it.live_bytes[-1] / _MIB:.1f} MiB at the end"
        for it in lines
    )
