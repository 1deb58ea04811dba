"""A variant's line in a table: which columns there are, what they are called, and which of them say something here.

The columns of memory have one name in every table. Bits are shown where a variant is not stored plain, bytes read where
they are another share than bytes held.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from jobs.analysis.storage import Storage
from jobs.analysis.summary import MacroMean
from jobs.analysis.variant_summary import VariantSummary
from jobs.reporting.notation import (
    Shown,
    human_bytes,
    percent,
    plain,
    shown_bits,
    shown_held,
    shown_interval,
    shown_score,
)

BYTES, SLOTS, BITS, READ, POSITIONS = "bytes", "slots", "bits", "read", "positions"
_SEEN_SHARE = 0.001  # shares are shown with one decimal of a per cent
_WORDS = {
    BYTES: "share held of the full cache's keys and values, and how many, with scales and log masses, positions apart",
    SLOTS: "share of its slots",
    BITS: "of a stored number, keys/values where they differ",
    READ: "share that a step reads of what one reads of the full cache",
}


class Cells(NamedTuple):
    """A variant's line in a table: on a task, or over tasks, where no number has an interval.

    The cells of columns that may tell nothing are named like them.
    """

    answer_nll: Shown
    recovered: Shown
    kl: Shown
    top1: Shown
    score: Shown
    held: Shown
    slots: Shown
    bits: Shown
    read: Shown
    positions: Shown


def task_cells(variant: VariantSummary) -> Cells:
    """A variant's numbers on one task."""
    return Cells(
        shown_interval(variant.answer_nll),
        Shown(plain(variant.nll_recovered)),
        shown_interval(variant.kl),
        shown_interval(variant.top1_agreement, "{:.2f}", highest=1.0),
        shown_score(variant),
        *_memory_cells(variant.storage, variant.kept_ratio),
    )


def mean_cells(mean: MacroMean) -> Cells:
    """A variant's means over the tasks."""
    return Cells(
        Shown(plain(mean.answer_nll, "{:.3f}")),
        Shown(plain(mean.nll_recovered)),
        Shown(plain(mean.kl, "{:.3f}")),
        Shown(plain(mean.top1_agreement)),
        Shown(plain(None if mean.score is None else 100 * mean.score, "{:.1f}")),
        *_memory_cells(mean.storage, mean.kept_ratio),
    )


def _memory_cells(storage: Storage, kept_ratio: float | None) -> tuple[Shown, Shown, Shown, Shown, Shown]:
    return (
        shown_held(storage),
        Shown(percent(kept_ratio)),
        Shown(shown_bits(storage)),
        Shown(percent(storage.read_share)),
        Shown(human_bytes(storage.position_bytes)),
    )


def silent_columns(lines: Sequence[VariantSummary | MacroMean]) -> frozenset[str]:
    """Of BITS, READ and POSITIONS, those that tell nothing in a table of these lines."""
    storages = [it.storage for it in lines]
    is_silent = {
        BITS: all(it.is_plain for it in storages),
        READ: not any(map(reads_otherwise, lines)),
        POSITIONS: all(it.position_bytes is None for it in storages),
    }
    return frozenset(column for column, silent in is_silent.items() if silent)


def told(cells: Cells, silent: Collection[str]) -> list[Shown]:
    """The cells that are not of `silent` columns."""
    return [shown for name, shown in cells._asdict().items() if name not in silent]


def reads_otherwise(line: VariantSummary | MacroMean) -> bool:
    """Whether an answering step is known to read another share of the bytes than the variant holds."""
    held, read = line.storage.held_share, line.storage.read_share
    return read is not None and (held is None or abs(read - held) >= _SEEN_SHARE)


def memory_words(lines: Sequence[VariantSummary | MacroMean]) -> dict[str, str]:
    """Column → what it means, of the columns of memory that are shown in tables of these lines."""
    silent = silent_columns(lines)
    return {column: words for column, words in _WORDS.items() if column not in silent}


def stored_otherwise(lines: Iterable[VariantSummary | MacroMean]) -> str:
    """That forms other than plain end where the prefix ends, and what positions add; "" where all are plain."""
    storages = [it.storage for it in lines]
    packed = [it for it in storages if not it.is_plain]
    if not packed:
        return ""
    forms = ", ".join(dict.fromkeys(it.form for it in packed if it.form))
    tails = ", ".join(dict.fromkeys(it.tail_form for it in packed if it.tail_form)) or "plain"
    largest = max((it.position_bytes or 0.0 for it in storages), default=0.0)
    positions = f"; positions are at most {human_bytes(largest)} more" if largest else ""
    return f"stored as {forms}: the compressed part; the question's tail and the answer behind it stay {tails}{positions}"
