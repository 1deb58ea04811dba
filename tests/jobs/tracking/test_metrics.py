"""Numbers are finite and depend on the rows alone; a thinned trace keeps its ends and its peak."""

from __future__ import annotations

import json
import math
import random
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Metric
from mlflow.utils.validation import _validate_batch_log_data

from jobs.results.schema import FAILED, Row
from jobs.tracking.metrics import (
    HIGH,
    LOW,
    MAX_TRACE_POINTS,
    RunningMeans,
    file_name,
    metric_key,
    row_numbers,
    thinned,
    trace_points,
)
from tests.fakes.rows import make_row, make_sweep_rows

TASK = "longbench/qasper"
NUMBERS: dict[str, Any] = {
    "benchmark": "longbench",
    "task": "qasper",
    "score": 0.25,
    "kl_mean": 0.5,
    "top1_agreement": 0.75,
    "answer_nll": 2.0,
    "kv_bytes": 4096,
    "kept_ratio": 0.5,
    "seconds": '{"compress_s": 1.5}',
}


def test_row_gives_its_numbers_under_what_they_are_and_their_task() -> None:
    assert row_numbers(make_row("a", **NUMBERS)) == {
        f"score/{TASK}": 0.25,
        f"kl/{TASK}": 0.5,
        f"top1/{TASK}": 0.75,
        f"nll/{TASK}": 2.0,
        f"bytes/{TASK}": 4096.0,
        f"kv_bytes/{TASK}": 4096.0,
        f"kept/{TASK}": 0.5,
        f"time/compress_s/{TASK}": 1.5,
    }


def test_a_packed_row_gives_its_shares_bits_and_positions() -> None:
    stored = {
        "full_kv_bytes": 8192 + 512,
        "kv_bytes": 2048 + 512,
        "position_bytes": 512,
        "full_position_bytes": 512,
    }
    told = {"read_bytes": 1024, "full_read_bytes": 8192, "bits_k": 8.0, "bits_v": 4.0, "form": "k8v4"}
    found = row_numbers(make_row("a", **NUMBERS | stored | told))
    memory = {"bytes", "kv_bytes", "kept", "bytes_share", "read_share", "position_bytes", "bits_k", "bits_v"}
    assert {key: value for key, value in found.items() if key.partition("/")[0] in memory} == {
        f"bytes/{TASK}": 2048.0,
        f"kv_bytes/{TASK}": 2560.0,
        f"kept/{TASK}": 0.5,
        f"bytes_share/{TASK}": 0.25,
        f"read_share/{TASK}": 0.125,
        f"position_bytes/{TASK}": 512.0,
        f"bits_k/{TASK}": 8.0,
        f"bits_v/{TASK}": 4.0,
    }


@pytest.mark.parametrize("value", [None, math.inf, -math.inf, math.nan])
def test_null_and_not_finite_numbers_are_left_out(value: float | None) -> None:
    row = make_row("a", **{**NUMBERS, "score": value, "answer_nll": value})
    assert not {f"score/{TASK}", f"nll/{TASK}"} & row_numbers(row).keys()


def test_a_failed_row_counts_and_gives_no_number() -> None:
    means = RunningMeans()
    means.add(make_row("a", **NUMBERS, status=FAILED))
    assert means.means() == {}
    assert means.readings().values == {"rows/ok": 0.0, "rows/truncated": 0.0, "rows/failed": 1.0}


def test_running_means_are_the_means_of_the_rows_and_a_row_sent_again_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    rows = make_sweep_rows(rng, {}, ["longbench/qasper", "ruler/vt"], 7)
    again = [*rows, *rng.sample(rows, 5)]
    rng.shuffle(again)
    means = RunningMeans()
    for row in again:
        means.add(row)
    for task in ("longbench/qasper", "ruler/vt"):
        of_task = [row["answer_nll"] for row in rows if f"{row['benchmark']}/{row['task']}" == task]
        expected = pytest.approx(statistics.fmean(of_task))
        assert means.readings().values[f"nll/{task}"] == expected
    assert means.readings().num_rows == len(rows)


def with_trace(live_bytes: list[int]) -> Row:
    trace = [[3 * index, "decode", value, 2 * value] for index, value in enumerate(live_bytes)]
    return make_row("a", **NUMBERS, trace=json.dumps(trace), created_at_s=12.5)


@given(
    st.lists(st.integers(0, 10**12), max_size=4) | st.lists(st.integers(0, 10**12), min_size=90, max_size=400)
)
def test_a_trace_is_thinned_to_points_of_its_own_in_order_with_ends_and_peak(live_bytes: list[int]) -> None:
    points = trace_points(with_trace(live_bytes))
    whole = [(3 * index, float(value)) for index, value in enumerate(live_bytes)]
    shown = [(point.step, point.value) for point in points]
    assert set(shown) <= set(whole) and shown == sorted(set(shown))
    assert len(shown) == min(len(whole), MAX_TRACE_POINTS)
    assert shown[:1] + shown[-1:] == whole[:1] + whole[-1:]
    assert max((value for _, value in shown), default=None) == max((it for _, it in whole), default=None)
    assert {(point.key, point.timestamp_ms) for point in points} <= {(f"trace_bytes/{TASK}", 12500)}


def test_a_short_trace_is_not_thinned() -> None:
    steps = [(index, 1.0) for index in range(MAX_TRACE_POINTS)]
    assert list(thinned(steps)) == steps


ODD = [
    "longbench/my task",
    "rows/Fragen über Büros @ 50 % + Rest",
    "rows/質問",
    "rows/a:b",
    "rows/a;b",
    "a//b",
    "./b",
    "../b",
    "a/..",
    "a/",
    "",
    " ",
    "tab\tnewline\n",
    "tab\tnewline",
    "\ud800",
    "x" * 400,
    "x" * 401,
    "x/" * 200,
]


def is_taken_by_mlflow(key: str) -> bool:
    metrics, _, _ = _validate_batch_log_data([Metric(key, 1.0, 0, 0)], [], [])
    return [metric.key for metric in metrics] == [key]


@pytest.mark.parametrize(
    "name", ["longbench/qasper", "longbench-e/2wikimqa/0-4k", "ruler/4096/niah_single_2"]
)
def test_a_plain_name_stays_as_it_is(name: str) -> None:
    assert metric_key("score", name) == f"score/{name}"


@pytest.mark.parametrize("name", ODD)
def test_odd_names_and_their_ends_are_legal(name: str) -> None:
    for key in (metric_key("score", name), f"{metric_key('score', name)}/{HIGH}"):
        assert is_taken_by_mlflow(key)


@given(st.text(max_size=300) | st.text(alphabet="/. _-:@%+x", max_size=300))
def test_any_name_is_legal(name: str) -> None:
    assert is_taken_by_mlflow(f"{metric_key('delta', name)}/{LOW}")
    file = f"{file_name(name)}.parquet"
    assert "/" not in file and len(file.encode()) <= 255


def test_different_names_have_different_keys_and_files() -> None:
    assert len({metric_key("score", name) for name in ODD}) == len(ODD)
    plain = ["a/b", "a-b", "a b", "a+b", "a@b", "a_b", "a-b/c", "a/b-c"]
    assert len({file_name(name) for name in [*plain, *ODD]}) == len(plain) + len(ODD)
    assert file_name("longbench/qasper") == "longbench-qasper"
