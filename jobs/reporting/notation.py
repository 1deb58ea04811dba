"""How the page writes numbers: a mean with its ends beside it, a dash for what is not known, never a 0."""

from __future__ import annotations

from typing import NamedTuple

from evaluators.statistics.intervals import Interval, proportion_interval
from jobs.analysis.variant_summary import VariantSummary

UNKNOWN = "-"
NO_SPREAD = "no spread"
"""Stands for an interval where all values are equal: ends without width would read as certainty."""


class Shown(NamedTuple):
    """A number as text, and its 95 % interval, NO_SPREAD or ""."""

    mean: str
    ends: str = ""


def score_interval(variant: VariantSummary) -> Interval | None:
    """Exact (Clopper-Pearson) where every score of the task is 0 or 1, else the one over contexts."""
    if variant.score is None or variant.num_right is None:
        return variant.score
    return proportion_interval(variant.num_right, variant.score.num_items)


def instead_of_ends(interval: Interval) -> str:
    """What stands where an interval has no ends to show: NO_SPREAD, or "" where one context tells nothing."""
    return NO_SPREAD if interval.has_no_spread else ""


def shown_interval(
    interval: Interval | None, layout: str = "{:.3f}", lowest: float = 0.0, highest: float = float("inf")
) -> Shown:
    """Mean and ends; the ends are cut to the values the quantity can take."""
    if interval is None:
        return Shown(UNKNOWN)
    if interval.ends is None:
        return Shown(layout.format(interval.mean), instead_of_ends(interval))
    ends = (max(interval.ends[0], lowest), min(interval.ends[1], highest))
    return Shown(layout.format(interval.mean), " to ".join(layout.format(end) for end in ends))


def shown_score(variant: VariantSummary) -> Shown:
    """Counts where a score is right or wrong, otherwise 0 to 100."""
    interval = score_interval(variant)
    if interval is None:
        return Shown(UNKNOWN)
    if variant.num_right is not None:
        ends = shown_interval(interval, "{:.0%}", highest=1.0).ends
        return Shown(f"{variant.num_right} of {interval.num_items}", ends)
    percent = Interval(
        100 * interval.mean,
        None if interval.low is None else 100 * interval.low,
        None if interval.high is None else 100 * interval.high,
        interval.num_items,
        interval.num_clusters,
        interval.method,
        interval.is_too_few,
    )
    return shown_interval(percent, "{:.1f}", highest=100.0)


def ends_in_percent(interval: Interval | None) -> str:
    """Of a score, 0 to 100, cut to what it can be; "" where it has no interval."""
    if interval is None or interval.ends is None:
        return "" if interval is None else instead_of_ends(interval)
    low, high = interval.ends
    return f"{100 * max(low, 0.0):.1f} to {100 * min(high, 1.0):.1f}"


def shown_count(variant: VariantSummary) -> str:
    """Rows, or finished of all rows where some failed."""
    is_whole = variant.num_finished == variant.num_rows
    return str(variant.num_rows) if is_whole else f"{variant.num_finished} of {variant.num_rows}"


def plain(value: float | None, layout: str = "{:.2f}") -> str:
    """A number without an interval."""
    return UNKNOWN if value is None else layout.format(value)
