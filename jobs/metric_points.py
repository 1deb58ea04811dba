"""The same row always gives the same metric points, so sending it twice adds nothing.

Every point is finite. Its step is the item's place in the plan and its time the row's own, never the clock's.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

MAX_TRACE_POINTS = 32
"""Points kept of one row's memory trace; also the steps that one item takes on the trace's axis."""

TRACE_KEY = "memory/trace_live_bytes"
_FIDELITY_COLUMNS = ("kl_mean", "top1_agreement", "answer_nll")
_MEMORY_COLUMNS = ("kv_bytes", "kept_ratio")
_MS_PER_S = 1000
_LIVE_BYTES = 2  # place in a trace entry (step, phase, live_bytes, reserved_bytes)


class MetricPoint(NamedTuple):
    """One number of one metric. `timestamp_ms` counts from the Unix epoch."""

    key: str
    value: float
    timestamp_ms: int
    step: int


def row_points(row: Mapping[str, Any], item_step: int) -> list[MetricPoint]:
    """Points of one row; what is null or not finite is left out, so a failed row may give none."""
    named = [(f"score/{row['benchmark']}/{row['task']}", row["score"])]
    named += [(f"fidelity/{column}", row[column]) for column in _FIDELITY_COLUMNS]
    named += [(f"memory/{column}", row[column]) for column in _MEMORY_COLUMNS]
    timestamp_ms = row_timestamp_ms(row)
    points = [
        MetricPoint(key, float(value), timestamp_ms, item_step) for key, value in named if _is_finite(value)
    ]
    points.extend(_trace_points(row, item_step))
    return points


def row_timestamp_ms(row: Mapping[str, Any]) -> int:
    """When the row was made, in milliseconds of Unix time."""
    return int(row["created_at_s"] * _MS_PER_S)


def aggregate_points(values: Mapping[str, float | None], timestamp_ms: int) -> list[MetricPoint]:
    """Points of a run's final numbers, at step 0; what is null or not finite is left out."""
    return [
        MetricPoint(key, float(value), timestamp_ms, 0)
        for key, value in values.items()
        if value is not None and _is_finite(value)
    ]


def _trace_points(row: Mapping[str, Any], item_step: int) -> Iterator[MetricPoint]:
    """The thinned trace on consecutive steps: the items of a sweep follow one another on the chart."""
    trace = json.loads(row["trace"]) if row["trace"] else []
    for index, live_bytes in enumerate(_thinned([entry[_LIVE_BYTES] for entry in trace])):
        step = item_step * MAX_TRACE_POINTS + index
        yield MetricPoint(TRACE_KEY, float(live_bytes), row_timestamp_ms(row), step)


def _thinned(values: list[float]) -> list[float]:
    """At most MAX_TRACE_POINTS values, the largest of each run of neighbours: no peak is thinned away."""
    num_points = min(len(values), MAX_TRACE_POINTS)
    edges = [index * len(values) // num_points for index in range(num_points + 1)] if num_points else []
    return [max(values[begin:end]) for begin, end in itertools.pairwise(edges)]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
