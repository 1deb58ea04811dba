"""Memory and seconds in the gate: any item more counts, seconds only of isolated rows on one device whose name is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jobs.results.schema import FAILED, Row
from tests.fakes.pairs import paired_rows
from tests.jobs.gate.test_judge import LABEL, changed, judged, night

H200 = {"device": "cuda", "device_name": "NVIDIA H200"}
H100 = {"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3"}
UNNAMED = {"device": "cuda", "device_name": None}
CPU = {"device": "cpu", "device_name": "AMD EPYC, cpu family 26, model 2"}


def test_ten_per_cent_more_memory_fails_on_few_items_too(seed: int) -> None:
    rows = paired_rows(seed, 4, ("a",), prediction="said", execution="fused")
    more = changed(rows, lambda row, rng: {"kv_bytes": round(1.1 * row["kv_bytes"])})
    verdict = judged(rows, more)
    (failed,) = verdict.having("fail")
    assert (failed.label, failed.metric) == (LABEL, "KV bytes") and failed.loss == pytest.approx(10, abs=0.01)
    barely = changed(rows, lambda row, rng: {"kv_bytes": round(1.009 * row["kv_bytes"])})
    less = changed(rows, lambda row, rng: {"kv_bytes": row["kv_bytes"] // 2})
    assert not judged(rows, barely).having("fail") and not judged(rows, less).having("fail")


def packed(row: Row, read_bytes: int | None = None) -> Row:
    """The row as a packed one: positions told, and reads of all it holds unless told otherwise."""
    held = row["kv_bytes"] - 2**10
    told = {"position_bytes": 2**10, "form": "int4", "bits_k": 4.0, "bits_v": 4.0}
    return row | told | {"read_bytes": held if read_bytes is None else read_bytes}


def test_a_step_that_reads_more_is_a_regression_although_it_holds_as_much(seed: int) -> None:
    rows = [packed(row, 2**18) for row in night(seed)]
    more = changed(rows, lambda row, rng: {"read_bytes": round(1.1 * 2**18)})
    failed = judged(rows, more).having("fail")
    assert {(it.label, it.metric) for it in failed} == {(LABEL, "bytes read")}
    assert failed[0].loss == pytest.approx(10, abs=0.01) and failed[0].num_worse == failed[0].num_items
    assert judged(rows, rows).outcome == "pass"


def test_reads_of_all_that_is_held_are_not_judged_twice(seed: int) -> None:
    rows = [packed(row) for row in night(seed)]
    more = [
        packed(row | {"kv_bytes": 2 * row["kv_bytes"]}) if row["variant"] == LABEL else row for row in rows
    ]
    verdict = judged(rows, more)
    assert {it.metric for it in verdict.having("fail")} == {"KV bytes"}
    assert not any(it.metric == "bytes read" for it in verdict.checks)


def test_a_baseline_of_before_reads_were_counted_is_no_hindrance(seed: int) -> None:
    for tonight in ([packed(row) for row in night(seed)], [packed(row, 2**18) for row in night(seed)]):
        verdict = judged(night(seed), tonight)
        reads = [it for it in verdict.checks if it.metric == "bytes read"]
        assert verdict.outcome == "pass" and {it.verdict for it in reads} <= {"not measured"}
        assert {it.reason for it in reads} <= {"the baseline has no read_bytes"}


def test_another_form_is_told_beside_what_it_costs(seed: int) -> None:
    rows = [packed(row) for row in night(seed)]
    other = changed(rows, lambda row, rng: {"form": "int8", "kv_bytes": 2 * row["kv_bytes"]})
    verdict = judged(rows, other)
    assert f"{LABEL}, stored as: int4 in the baseline, int8 in this night" in verdict.told
    assert {it.metric for it in verdict.having("fail")} >= {"KV bytes"}


def test_peak_memory_counts_where_rows_have_it(seed: int) -> None:
    rows = [row | {"peak_bytes": 2**30} | H200 for row in night(seed)]
    more = changed(rows, lambda row, rng: {"peak_bytes": round(1.05 * 2**30)})
    assert {it.metric for it in judged(rows, more).having("fail")} == {"peak bytes"}
    assert all(
        it.verdict == "not measured"
        for it in judged(night(seed), night(seed)).checks
        if it.metric == "peak bytes"
    )


def test_a_peak_on_another_gpu_is_no_regression_but_more_keys_and_values_are(seed: int) -> None:
    rows = [row | {"peak_bytes": 2**30} | H200 for row in night(seed)]
    other = changed(rows, lambda row, rng: {"peak_bytes": 2**31, "kv_bytes": 2 * row["kv_bytes"]})
    verdict = judged(rows, [row | H100 for row in other])
    assert {it.metric for it in verdict.having("fail")} == {"KV bytes"}
    peaks = [it for it in verdict.checks if it.metric == "peak bytes"]
    assert {it.reason for it in peaks} == {
        "another device: cuda (NVIDIA H200) in the baseline, cuda (NVIDIA H100 80GB HBM3) tonight"
    }


def timed(rows: list[Row], factor: float, seed: int, execution: str = "isolated") -> list[Row]:
    """Seconds with a few per cent of jitter; the gated policy's are multiplied."""
    rng = np.random.default_rng(seed)

    def seconds(row: Row) -> str:
        total = rng.normal(1.0, 0.03) * (factor if row["variant"] == LABEL else 1.0)
        return json.dumps(
            {"prefill_s": 0.7 * total, "compress_s": 0.1 * total, "decode_shared_s": 0.2 * total}
        )

    return [
        row
        | {
            "execution": execution,
            "seconds": seconds(row),
        }
        | H200
        for row in rows
    ]


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


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        (
            [H200],
            [CPU],
            "another device: cuda (NVIDIA H200) in the baseline, cpu (AMD EPYC, cpu family 26, model 2) tonight",
        ),
        (
            [H100],
            [H200],
            "another device: cuda (NVIDIA H100 80GB HBM3) in the baseline, cuda (NVIDIA H200) tonight",
        ),
        (
            [UNNAMED],
            [H200],
            "another device: cuda (name unknown) in the baseline, cuda (NVIDIA H200) tonight",
        ),
        ([UNNAMED], [UNNAMED], "not known to be one device: cuda (name unknown)"),
        (
            [H200, H100],
            [H200, H100],
            "several devices on both sides: cuda (NVIDIA H100 80GB HBM3), cuda (NVIDIA H200)",
        ),
    ],
)
def test_seconds_of_another_or_an_unknown_device_are_not_compared(
    seed: int, before: list[Row], now: list[Row], reason: str
) -> None:
    rows = timed(night(seed), 1.0, seed)
    slower = timed(night(seed), 2.0, seed)
    verdict = judged(
        [row | before[index % len(before)] for index, row in enumerate(rows)],
        [row | now[index % len(now)] for index, row in enumerate(slower)],
    )
    speeds = [it for it in verdict.checks if it.metric == "seconds"]
    assert {(it.verdict, it.reason) for it in speeds} == {("not measured", reason)}


def test_seconds_that_a_night_lost_are_not_called_another_devices(seed: int) -> None:
    rows = timed(night(seed), 1.0, seed)
    lost = [
        row | {"status": FAILED, "device": None, "device_name": None}
        for row in rows
        if row["variant"] == LABEL
    ]
    verdict = judged(rows, [*(row for row in rows if row["variant"] != LABEL), *lost])
    speeds = [it for it in verdict.checks if it.metric == "seconds" and it.label == LABEL]
    assert {it.verdict for it in speeds} == {"inconclusive"}
