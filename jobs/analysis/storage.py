"""What a variant's cache is stored as and costs: bytes held, bytes read at each step, bits.

Every number is a mean over the rows that tell it; None: no row does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jobs.results.schema import Row
from jobs.results.stored_bytes import held_bytes, held_share, read_share
from kvmerger.generation import PLAIN_FORM


@dataclass(frozen=True, slots=True)
class Storage:
    """Of one variant, on a task or over tasks.

    `held_share` and `read_share` are of the full cache's keys and values, a mean of the items' shares; positions are in
    `position_bytes` alone. `held_bytes` is keys and values with scales, offsets and log masses. `bits_k` and `bits_v` are
    bits of a stored number without its scales. `form` is what prefixes are stored as, several joined by commas.
    """

    form: str | None
    tail_form: str | None
    bits_k: float | None
    bits_v: float | None
    held_bytes: float | None
    held_share: float | None
    read_share: float | None
    position_bytes: float | None

    @property
    def is_plain(self) -> bool:
        """Whether keys and values lie in the model's dtype, as in all rows of versions that knew nothing else."""
        return self.form in (None, PLAIN_FORM)


def storage_of(rows: Sequence[Row]) -> Storage:
    """Of finished rows of one variant."""
    return Storage(
        form=_joined(row["form"] for row in rows),
        tail_form=_joined(row["tail_form"] for row in rows),
        bits_k=_mean(rows, lambda row: row["bits_k"]),
        bits_v=_mean(rows, lambda row: row["bits_v"]),
        held_bytes=_mean(rows, held_bytes),
        held_share=_mean(rows, held_share),
        read_share=_mean(rows, read_share),
        position_bytes=_mean(rows, lambda row: row["position_bytes"]),
    )


def mean_storage(of_tasks: Sequence[Storage]) -> Storage:
    """Over tasks, every task weighing the same; a number that one of them lacks is None."""

    def mean(read: Callable[[Storage], float | None]) -> float | None:
        known = [value for value in map(read, of_tasks) if value is not None]
        return statistics.fmean(known) if known and len(known) == len(of_tasks) else None

    return Storage(
        form=_joined(it.form for it in of_tasks),
        tail_form=_joined(it.tail_form for it in of_tasks),
        bits_k=mean(lambda it: it.bits_k),
        bits_v=mean(lambda it: it.bits_v),
        held_bytes=mean(lambda it: it.held_bytes),
        held_share=mean(lambda it: it.held_share),
        read_share=mean(lambda it: it.read_share),
        position_bytes=mean(lambda it: it.position_bytes),
    )


def _joined(names: Iterable[str | None]) -> str | None:
    """Each name once; None where there is none."""
    return ", ".join(dict.fromkeys(name for name in names if name)) or None


def _mean(rows: Sequence[Row], read: Callable[[Row], float | None]) -> float | None:
    known = [value for value in map(read, rows) if value is not None]
    return statistics.fmean(known) if known else None
