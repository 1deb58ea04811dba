"""The one file where a number, a name or a stored text becomes what people read, in every output alike.

What is not known is a dash, never a 0. An interval is "low to high". A mean is never given ends that its quantity cannot
take, nor ends without width, which would read as certainty.
"""

from __future__ import annotations

import math
import unicodedata
from typing import NamedTuple

from evaluators.statistics.intervals import MIN_CLUSTERS, Interval
from jobs.analysis.differences import NO_SCALE
from jobs.analysis.labels import REFERENCE_WORDS
from jobs.analysis.pairing import ComparedMetric
from jobs.analysis.published_beside import FigureBeside
from jobs.analysis.storage import Storage
from jobs.analysis.summary import ResultSummary, TaskSummary
from jobs.analysis.variant_summary import Kept, VariantSummary, is_named_by_outcome, without_setup
from jobs.results.grouping import Setting
from kvmerger.variants import FULL, NO_CONTEXT

UNKNOWN = "-"
TOO_FEW = f"too few to rank policies by ({MIN_CLUSTERS} are needed)"
NO_SPREAD = "no spread"
"""Stands for an interval where all values are equal."""
TO = " to "
_ENDS_OF_SCALE = {FULL: "full-cache", NO_CONTEXT: "no-context"}
_LEAST_SHOWN_P = 0.001
_BYTES_PER_UNIT = 1024
_THREE_DIGITS = 100
_PERCENT = 100
_MAX_TEXT_CHARS = 1200  # of a stored text: nobody would read on
_KEPT_CONTROLS = "\n\t"


class Shown(NamedTuple):
    """A number as text, and what stands under it: its 95 % interval, what is told instead of one, or of a share its bytes."""

    mean: str
    ends: str = ""

    def on_one_line(self) -> str:
        """The mean, and in brackets what stands under it."""
        return f"{self.mean} [{self.ends}]" if self.ends else self.mean


def plain(value: float | None, layout: str = "{:.2f}") -> str:
    """A number without an interval."""
    return UNKNOWN if value is None else layout.format(value)


def percent(ratio: float | None, digits: int = 1) -> str:
    """A ratio as "49.9%"."""
    return UNKNOWN if ratio is None else f"{ratio:.{digits}%}"


def counted(number: int, noun: str) -> str:
    """ "1 context", "2 contexts": for nouns whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def signed(value: float, layout: str) -> str:
    """A difference with its sign; what rounds to 0 has none."""
    # By the digits that are shown, not by the value: -0.0004 would become "-0.000", beside "+0.000" of another row.
    text = layout.format(value)
    return text if any(digit in text for digit in "123456789") else text.lstrip("+-")


def shown_p(p_value: float | None) -> str:
    """A p-value to three digits, or that it is smaller than they can show."""
    if p_value is None:
        return UNKNOWN
    # Three digits would make it 0.000, and no test can say that.
    return f"{p_value:.3f}" if p_value >= _LEAST_SHOWN_P else f"<{_LEAST_SHOWN_P:g}"


def human_bytes(num_bytes: float | None) -> str:
    """Bytes in the largest binary unit that leaves at least 1, with about three digits."""
    if num_bytes is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < _BYTES_PER_UNIT:
            # Whole bytes have no tenths, and three digits before the point are enough of them.
            is_whole = unit == "B" or round(num_bytes, 1) >= _THREE_DIGITS
            return f"{num_bytes:.0f} {unit}" if is_whole else f"{num_bytes:.1f} {unit}"
        num_bytes /= _BYTES_PER_UNIT
    return f"{num_bytes:.1f} TiB"


def shown_held(storage: Storage) -> Shown:
    """Bytes held as a share of the full cache's, and how many they are."""
    num_bytes = "" if storage.held_bytes is None else human_bytes(storage.held_bytes)
    return Shown(percent(storage.held_share), num_bytes)


def shown_bits(storage: Storage) -> str:
    """Bits of a stored number: "4", or "8/4" where keys and values differ."""
    bits = list(dict.fromkeys(plain(it, "{:.3g}") for it in (storage.bits_k, storage.bits_v)))
    return "/".join(bits)


def shown_interval(
    interval: Interval | None,
    layout: str = "{:.3f}",
    lowest: float = 0.0,
    highest: float = math.inf,
    factor: float = 1.0,
) -> Shown:
    """Mean and ends, times `factor`; the ends are cut to what the quantity, before that, can be."""
    if interval is None:
        return Shown(UNKNOWN)
    mean = layout.format(factor * interval.mean)
    if interval.ends is None:
        return Shown(mean, instead_of_ends(interval))
    ends = (max(interval.ends[0], lowest), min(interval.ends[1], highest))
    return Shown(mean, TO.join(layout.format(factor * end) for end in ends))


def instead_of_ends(interval: Interval) -> str:
    """What stands where an interval has no ends to show: NO_SPREAD, the reason, or "" where one context tells nothing."""
    return NO_SPREAD if interval.has_no_spread else interval.reason


def shown_value(metric: ComparedMetric, value: float | None) -> str:
    """A mean of a compared metric, in the unit that readers see."""
    return plain(None if value is None else metric.unit_factor * value, f"{{:.{_digits(metric)}f}}")


def shown_difference(metric: ComparedMetric, interval: Interval | None) -> Shown:
    """A difference of a compared metric, signed: points with one decimal, nats with three."""
    if interval is None:
        return Shown(UNKNOWN)
    layout, factor = f"{{:+.{_digits(metric)}f}}", metric.unit_factor
    mean = signed(factor * interval.mean, layout)
    if interval.ends is None:
        return Shown(mean, instead_of_ends(interval))
    # Student's t knows no bounds, but no two scores are further apart than 0 and 1.
    reach = factor if _is_in_points(metric) else math.inf
    ends = (min(max(factor * end, -reach), reach) for end in interval.ends)
    return Shown(mean, TO.join(signed(end, layout) for end in ends))


def _digits(metric: ComparedMetric) -> int:
    return 1 if _is_in_points(metric) else 3


def _is_in_points(metric: ComparedMetric) -> bool:
    return metric.unit_factor == _PERCENT  # scores alone are shown as points of 100


def shown_score(variant: VariantSummary) -> Shown:
    """Counts where a score is right or wrong, otherwise 0 to 100."""
    interval = variant.score_interval
    if interval is None or variant.num_right is None:
        return shown_interval(interval, "{:.1f}", highest=1.0, factor=_PERCENT)
    # The mean is told as a count, from which a reader gets it without rounding; the ends cannot be.
    ends = shown_interval(interval, "{:.0%}", highest=1.0).ends
    return Shown(f"{variant.num_right} of {interval.num_items}", ends)


def shown_count(variant: VariantSummary) -> str:
    """Rows, or finished of all rows where some failed."""
    is_whole = variant.num_finished == variant.num_rows
    return str(variant.num_rows) if is_whole else f"{variant.num_finished} of {variant.num_rows}"


def where_rows_went(summary: ResultSummary) -> str:
    """The sum of all planned rows."""
    missing = f" + {summary.num_missing} missing (not run yet)" if summary.num_missing else ""
    return (
        f"planned {summary.num_planned} = {summary.num_ok} ok + {summary.num_truncated} truncated + "
        f"{summary.num_failed} failed{missing}"
    )


def shown_device(device: str, name: str | None) -> str:
    """The kind of a device with its name: "cuda (NVIDIA H200)"."""
    return f"{device} ({name or 'name unknown'})"


def shown_cut(task: TaskSummary) -> str:
    """How many of a task's prompts were cut, and what that may mean; "" where none was."""
    if not task.num_cut_items:
        return ""
    return f"{task.num_cut_items} of {task.num_items} prompts were too long and were cut; the answer may be in what is gone"


def why_no_scale(task: TaskSummary) -> str:
    """Why a task without a scale has none: not measured is another thing than measured and no better."""
    measured = {it.label for it in task.variants if it.answer_nll is not None}
    lacking = [name for label, name in _ENDS_OF_SCALE.items() if label not in measured]
    return f"the {' and the '.join(lacking)} rows have no answer NLL" if lacking else NO_SCALE


def shown_label(it: Kept) -> str:
    """The label, with measured slots instead of the set-up where the policy does not control them."""
    if not is_named_by_outcome(it):
        return it.label
    return f"{without_setup(it.label)} ({percent(it.kept_ratio)} kept)"


def shown_name(it: Kept) -> str:
    """How a variant is called in the tables: the references in words, all others by their label."""
    return REFERENCE_WORDS.get(it.label, shown_label(it))


def shown_task(figure: FigureBeside) -> str:
    """The task of a published figure, or that it is a mean."""
    return figure.task or f"mean of the {figure.num_tasks} tasks"


def shown_mode(setting: Setting) -> str:
    """The query mode, hyphenated."""
    return setting.query_mode.replace("_", "-")


def setting_in_words(setting: Setting) -> str:
    """Model, mode and execution, as a heading."""
    return f"{setting.model_name}, {shown_mode(setting)}, {setting.execution}"


def visible(text: str | None) -> str:
    """Stored text for a page: control and formatting characters as their code points, cut where it is long.

    It is still to be escaped.
    """
    # A model can write escape sequences, or marks that turn the reading direction of everything after them.
    shown = "".join(
        f"⟨U+{ord(it):04X}⟩" if unicodedata.category(it) in {"Cc", "Cf"} and it not in _KEPT_CONTROLS else it
        for it in (text or "")[:_MAX_TEXT_CHARS]
    )
    return f"{shown}…" if len(text or "") > _MAX_TEXT_CHARS else shown
