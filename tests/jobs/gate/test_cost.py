"""Memory and seconds in the gate: any item more counts, seconds only of isolated rows on one device."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jobs.results.schema import Row
from tests.fakes.pairs import paired_rows
from tests.jobs.gate.test_judge import LABEL, changed, judged, night


def test_ten_per_cent_more_memory_fails_on_few_items_too(seed: int) -> None:
    rows = paired_rows(seed, 4, ("a",), prediction="said", execution="fused")
    more = changed(rows, lambda row, rng: {"kv_bytes": round(1.1 * row["kv_bytes"])})
    verdict = judged(rows, more)
    (failed,) = verdict.having("fail")
    assert (failed.label, failed.metric) == (LABEL, "KV bytes") and failed.loss == pytest.approx(10, abs=0.01)
    barely = changed(rows, lambda row, rng: {"kv_bytes": round(1.009 * row["kv_bytes"])})
    less = changed(rows, lambda row, rng: {"kv_bytes": row["kv_bytes"] // 2})
    assert not judged(rows, barely).having("fail") and not judged(rows, less).having("fail")


def test_peak_memory_counts_where_rows_have_it(seed: int) -> None:
    rows = [row | {"peak_bytes": 2**30} for row in night(seed)]
    more = changed(rows, lambda row, rng: {"peak_bytes": round(1.05 * 2**30)})
    assert {it.metric for it in judged(rows, more).having("fail")} == {"peak bytes"}
    assert all(
        it.verdict == "not measured"
        for it in judged(night(seed), night(seed)).checks
        if it.metric == "peak bytes"
    )


def timed(rows: list[Row], factor: float, seed: int, execution: str = "isolated") -> list[Row]:
    """Seconds with a few per cent of jitter; the gated policy's are multiplied."""
    rng = np.random.default_rng(seed)

    def seconds(row: Row) -> str:
        total = rng.normal(1.0, 0.03) * (factor if row["variant"] == LABEL else 1.0)
        return json.dumps(
            {"prefill_s": 0.7 * total, "compress_s": 0.1 * total, "decode_shared_s": 0.2 * total}
        )

    return [row | {"execution": execution, "seconds": seconds(row), "device": "cuda"} for row in rows]


def test_speed_is_gated_in_isolated_rows_alone(seed: int) -> None:
    rows = night(seed)
    before = timed(rows, 1.0, seed)
    slower = judged(before, timed(rows, 1.3, seed + 1))
    assert {(it.label, it.metric) for it in slower.having("fail")} == {(LABEL, "seconds")}
    (first, *_) = slower.having("fail")
    assert first.loss == pytest.approx(30, abs=3)
    assert judged(before, timed(rows, 1.0, seed + 2)).outcome == "pass"
    fused = judged(timed(rows, 1.0, seed, "fused"), timed(rows, 1.3, seed, "fused"))
    speeds = [it for it in fused.checks if it.metric == "seconds"]
    assert {it.verdict for it in speeds} == {"not measured"} and "fused" in speeds[0].reason


def test_seconds_of_another_device_are_not_compared(seed: int) -> None:
    before = timed(night(seed), 1.0, seed)
    other = [row | {"device": "cpu"} for row in timed(night(seed), 2.0, seed)]
    speeds = [it for it in judged(before, other).checks if it.metric == "seconds"]
    assert {it.reason for it in speeds} == {"another device: cuda in the baseline, cpu tonight"}
