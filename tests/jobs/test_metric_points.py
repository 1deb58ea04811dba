"""Points are finite and depend on the row alone; a thinned trace keeps its peak."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.metric_points import MAX_TRACE_POINTS, TRACE_KEY, aggregate_points, row_points


def make_row(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "benchmark": "longbench",
        "task": "qasper",
        "score": 0.25,
        "kl_mean": 0.5,
        "top1_agreement": 0.75,
        "answer_nll": 2.0,
        "kv_bytes": 4096,
        "kept_ratio": 0.5,
        "trace": None,
        "created_at_s": 1700000000.25,
    }
    return row | changes


def test_row_gives_its_numbers_at_the_items_step_and_the_rows_time() -> None:
    points = row_points(make_row(), item_step=7)
    assert {point.key: point.value for point in points} == {
        "score/longbench/qasper": 0.25,
        "fidelity/kl_mean": 0.5,
        "fidelity/top1_agreement": 0.75,
        "fidelity/answer_nll": 2.0,
        "memory/kv_bytes": 4096.0,
        "memory/kept_ratio": 0.5,
    }
    assert {(point.step, point.timestamp_ms) for point in points} == {(7, 1700000000250)}


@pytest.mark.parametrize("value", [None, math.inf, -math.inf, math.nan])
def test_null_and_not_finite_numbers_give_no_point(value: float | None) -> None:
    keys = {point.key for point in row_points(make_row(score=value, answer_nll=value), 0)}
    assert keys == {"fidelity/kl_mean", "fidelity/top1_agreement", "memory/kv_bytes", "memory/kept_ratio"}
    assert aggregate_points({"score": value}, 0) == []


@given(
    st.lists(st.integers(0, 10**12), max_size=4)
    | st.lists(st.integers(0, 10**12), min_size=64, max_size=200),
    st.integers(0, 5),
)
def test_trace_is_thinned_to_consecutive_steps_and_keeps_its_peak(live_bytes: list[int], step: int) -> None:
    trace = json.dumps([[index, "decode", value, 2 * value] for index, value in enumerate(live_bytes)])
    points = [point for point in row_points(make_row(trace=trace), step) if point.key == TRACE_KEY]
    first = step * MAX_TRACE_POINTS
    assert [point.step for point in points] == list(range(first, first + len(points)))
    assert len(points) == min(len(live_bytes), MAX_TRACE_POINTS)
    assert max((point.value for point in points), default=None) == max(live_bytes, default=None)
