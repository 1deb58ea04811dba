"""Rows as numbers under MLflow's keys, while they come in; the same rows always give the same numbers.

Every number is finite. A key says in a word what is measured, since lists of runs show a dozen of its characters, then on
which task; units are those of the rows. Keys are names that every MLflow server takes, and different names have different
keys.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard

from jobs.results.grouping import task_of
from jobs.results.schema import DONE_STATUSES, STATUSES, Row
from jobs.results.stored_bytes import held_bytes, held_share, read_share

SCORE, PUBLISHED_SCORE = "score", "published_score"
ANSWER_NLL, KL, TOP1, NLL_RECOVERED = "nll", "kl", "top1", "recovered"
HELD_BYTES, HELD_SHARE, READ_SHARE = "bytes", "bytes_share", "read_share"
KV_BYTES, POSITION_BYTES, PEAK_BYTES = "kv_bytes", "position_bytes", "peak_bytes"
KEPT_RATIO = "kept"
BITS_K, BITS_V = "bits_k", "bits_v"
TRACE = "trace_bytes"
TIME = "time"
LOW, HIGH = "low", "high"
"""The ends of a 95 % interval stand under their mean: `score/longbench/qasper/low`."""
MAX_TRACE_POINTS = 100
"""Points of one trace that are charted; the whole of it is in the artifact `traces/`."""

_COLUMNS = {
    SCORE: "score",
    ANSWER_NLL: "answer_nll",
    KL: "kl_mean",
    TOP1: "top1_agreement",
    KV_BYTES: "kv_bytes",
    KEPT_RATIO: "kept_ratio",
    PEAK_BYTES: "peak_bytes",
    POSITION_BYTES: "position_bytes",
    BITS_K: "bits_k",
    BITS_V: "bits_v",
}
_DERIVED: Mapping[str, Callable[[Row], float | None]] = {
    HELD_BYTES: held_bytes,
    HELD_SHARE: held_share,
    READ_SHARE: read_share,
}
_MS_PER_S = 1000
_MAX_CHARS = 250  # MLflow refuses more
_ROOM_FOR_ENDS = 10  # for "/high", or the number of a second trace
_MAX_FILE_CHARS = 60  # of any script: disks take 255 bytes
_DIGEST_DIGITS = 6
_ILLEGAL = re.compile(r"[^\w.\- ]")  # `:` is legal on some servers only, and `/` parts the segments


class MetricPoint(NamedTuple):
    """One number of one metric. `timestamp_ms` counts from the Unix epoch."""

    key: str
    value: float
    timestamp_ms: int
    step: int


class Ranking(NamedTuple):
    """By what variants are ranked: the key, and whether less is better."""

    key: str
    is_less_better: bool


@dataclass(frozen=True, slots=True)
class Readings:
    """What one run should show: key → value, from `num_rows` rows of which the newest was made at `time_ms`."""

    values: Mapping[str, float]
    num_rows: int
    time_ms: int


@dataclass(slots=True)
class RunningMeans:
    """Means over the rows so far, of one variant or of the whole sweep; a row that comes again is not counted again."""

    has_numbers: bool = True
    _seen: set[str] = field(default_factory=set)
    _statuses: Counter[str] = field(default_factory=Counter)
    _sums: Counter[str] = field(default_factory=Counter)
    _counts: Counter[str] = field(default_factory=Counter)
    _time_ms: int = 0

    def add(self, row: Row) -> None:
        """Count a row, unless it was counted before."""
        # A unit that was tried again, or a sweep that goes on, brings rows that have been counted.
        if row["identity"] in self._seen:
            return
        self._seen.add(row["identity"])
        self._statuses[row["status"]] += 1
        self._time_ms = max(self._time_ms, time_ms_of(row))
        if self.has_numbers:
            numbers = row_numbers(row)
            self._sums.update(numbers)
            self._counts.update(numbers.keys())

    def readings(self) -> Readings:
        """The means, and how many rows ended how."""
        rows = {f"rows/{status}": float(self._statuses[status]) for status in STATUSES}
        return Readings(self.means() | rows, len(self._seen), self._time_ms)

    def means(self) -> dict[str, float]:
        """Key → mean over the rows that have the number."""
        return {key: self._sums[key] / count for key, count in self._counts.items()}


def row_numbers(row: Row) -> dict[str, float]:
    """Key → number of one row; what is null or not finite is left out, and of a failed row everything."""
    if row["status"] not in DONE_STATUSES:
        return {}
    task = task_of(row)
    found = {metric_key(what, task): row.get(column) for what, column in _COLUMNS.items()}
    found |= {metric_key(what, task): number_of(row) for what, number_of in _DERIVED.items()}
    seconds = json.loads(row.get("seconds") or "{}")
    found |= {metric_key(TIME, phase, task): value for phase, value in seconds.items()}
    return {key: float(value) for key, value in found.items() if is_finite(value)}


def mean_numbers(rows: Iterable[Row]) -> dict[str, float]:
    """Means of `row_numbers` over rows."""
    means = RunningMeans()
    for row in rows:
        means.add(row)
    return means.means()


def time_ms_of(row: Row) -> int:
    """When the row was made, in milliseconds of Unix time."""
    return int(row["created_at_s"] * _MS_PER_S)


def trace_points(row: Row) -> list[MetricPoint]:
    """The row's live bytes at the trace's own steps (0 is prefill): at most MAX_TRACE_POINTS, peaks among them."""
    trace = json.loads(row["trace"] or "[]")
    key, time_ms = metric_key(TRACE, task_of(row)), time_ms_of(row)
    steps = [(int(step), float(live_bytes)) for step, _, live_bytes, _ in trace]
    return [MetricPoint(key, live_bytes, time_ms, step) for step, live_bytes in thinned(steps)]


def thinned(steps: list[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """The first and the last (step, bytes) and, of each run of neighbours between them, the one with the most bytes."""
    if len(steps) <= MAX_TRACE_POINTS:
        yield from steps
        return
    first, *inner, last = steps
    num_runs = MAX_TRACE_POINTS - 2
    yield first
    for index in range(num_runs):
        begin, end = index * len(inner) // num_runs, (index + 1) * len(inner) // num_runs
        yield max(inner[begin:end], key=lambda it: it[1])
    yield last


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether the value is a finite number, which MLflow stores unchanged."""
    return isinstance(value, int | float) and math.isfinite(value)


def metric_key(*names: str) -> str:
    """The key of `names`, each of which may have parts of its own ("longbench/qasper").

    What MLflow refuses (signs, empty or dotted segments, more than 250 characters) is replaced.
    """
    name = "/".join(names)
    # By segments, since MLflow makes folders of them and refuses "", "." and ".." there.
    key = "/".join(_legal(segment) for segment in name.split("/"))
    most = _MAX_CHARS - _ROOM_FOR_ENDS
    # Two names may become one key, so a changed key carries a digest of what it was.
    if key != name or len(key) > most:
        key = f"{key[: most - _DIGEST_DIGITS - 1].rstrip('/ ')}-{_digest(name)}"
    return key


def file_name(name: str) -> str:
    """A task's or figure's name as one that any disk takes and no other name shares: "longbench-qasper"."""
    safe = re.sub(r"[^\w.\-]", "-", name)[:_MAX_FILE_CHARS]
    is_plain = name.isascii() and "-" not in name and safe == name.replace("/", "-")
    return safe if is_plain else f"{safe}-{_digest(name)}"


def _legal(segment: str) -> str:
    """A segment of a key as MLflow takes it; letters and digits of any script stay.

    It must not be empty, `.` or `..`, nor begin or end in a space.
    """
    kept = _ILLEGAL.sub("_", segment).strip()
    return kept if kept.strip(".") else "_"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:_DIGEST_DIGITS]
