"""MLflow gets the report's numbers, from the report's rows, under keys that say what and where."""

from __future__ import annotations

import random

import pytest

from jobs.analysis.differences import Difference, differences_to_full
from jobs.analysis.pairing import ANSWER_NLL, SCORE
from jobs.analysis.summary import ResultSummary, summarize
from jobs.planning.work import RowKey
from jobs.reporting.headline import headline
from jobs.results.schema import FAILED, Row
from jobs.tracking.final_metrics import (
    best_policy,
    charted_traces,
    flat_params,
    listed_keys,
    ranking,
    sweep_readings,
    variant_readings,
)
from tests.fakes.rows import FULL_POSITION_BYTES, INT4, make_sweep_rows, with_forms

TASKS = ("longbench/qasper", "ruler/vt")
POLICIES = {"snapkv@0.5": 0.5, "knorm@0.5": 0.5}


def summed(rows: list[Row]) -> tuple[ResultSummary, tuple[Difference, ...]]:
    return summarize(rows), differences_to_full(rows)


@pytest.fixture
def rows(seed: int) -> list[Row]:
    return make_sweep_rows(random.Random(seed), POLICIES, TASKS, 9, seconds='{"compress_s": 2.0}')


def test_means_and_ends_are_those_of_the_tables(rows: list[Row]) -> None:
    summary, differences = summed(rows)
    values = variant_readings(summary, differences, rows)["snapkv@0.5"].values
    for task in summary.tasks:
        variant = next(it for it in task.variants if it.label == "snapkv@0.5")
        assert variant.answer_nll is not None and variant.answer_nll.low is not None
        key = f"nll/{task.task}"
        assert values[key] == variant.answer_nll.mean
        assert values[f"{key}/low"] == max(variant.answer_nll.low, 0.0)
        assert values[f"recovered/{task.task}"] == variant.nll_recovered
        assert values[f"kv_bytes/{task.task}"] == pytest.approx(variant.kv_bytes)
        assert values[f"time/compress_s/{task.task}"] == 2.0
    means = {it.label: it for it in summary.macro_means(summary.settings()[0])}
    assert values["score/mean"] == means["snapkv@0.5"].score


def test_means_over_tasks_know_bytes_and_bits(rows: list[Row]) -> None:
    packed = with_forms(rows, {"snapkv@0.5": INT4})
    values = variant_readings(*summed(packed), packed)["snapkv@0.5"].values
    assert values["bytes_share/mean"] == pytest.approx(INT4.bytes_ratio / 2, abs=1e-5)
    assert values["read_share/mean"] == values["bytes_share/mean"]
    assert (values["bits_k/mean"], values["bits_v/mean"]) == (4.0, 4.0)
    assert values["position_bytes/mean"] == FULL_POSITION_BYTES / 2


def test_deltas_are_the_paired_differences_with_their_ends(rows: list[Row]) -> None:
    summary, differences = summed(rows)
    found = variant_readings(summary, differences, rows)
    for it in differences:
        assert it.paired is not None and it.paired.interval.high is not None
        key = f"{'delta' if it.metric is SCORE else 'delta_nll'}/{it.task or 'mean'}"
        assert found[it.label].values[key] == it.paired.interval.mean
        reach = 1.0 if it.metric is SCORE else float("inf")
        assert found[it.label].values[f"{key}/high"] == min(it.paired.interval.high, reach)
        assert found["full"].values[key] == found["full"].values[f"{key}/low"] == 0.0
    assert {it.metric for it in differences} == {SCORE, ANSWER_NLL}


def test_all_runs_compare_by_the_same_keys(rows: list[Row]) -> None:
    found = variant_readings(*summed(rows), rows)
    assert (
        found["snapkv@0.5"].values.keys() == found["knorm@0.5"].values.keys() == found["full"].values.keys()
    )


def test_the_listed_keys_are_numbers_the_runs_have(rows: list[Row]) -> None:
    for chosen in (rows, [row for row in rows if row["task"] == "qasper"]):
        summary, differences = summed(chosen)
        values = variant_readings(summary, differences, chosen)["knorm@0.5"].values
        assert set(listed_keys(summary)) <= values.keys()


def test_where_rows_went_is_told_of_the_sweep_and_of_every_variant(rows: list[Row]) -> None:
    rows[0] |= {"status": FAILED, "failure_phase": "load", "failure_type": "E"}
    summary, differences = summed(rows)
    told = sweep_readings(summary, differences, rows).values
    assert {key: value for key, value in told.items() if key.startswith("rows/")} == {
        "rows/planned": float(len(rows)),
        "rows/ok": float(len(rows) - 1),
        "rows/truncated": 0.0,
        "rows/failed": 1.0,
        "rows/missing": 0.0,
    }
    values = variant_readings(summary, differences, rows)[rows[0]["variant"]].values
    assert (values["rows/ok"], values["rows/failed"]) == (2 * 9 - 1, 1.0)


def test_one_task_is_its_own_mean_so_that_all_sweeps_are_listed_by_the_same_keys(rows: list[Row]) -> None:
    of_one = [row for row in rows if row["task"] == "qasper"]
    values = variant_readings(*summed(of_one), of_one)["snapkv@0.5"].values
    for name in ("score", "delta", "delta_nll", "nll", "kl", "bytes", "bytes_share", "kept"):
        assert values[f"{name}/mean"] == values[f"{name}/longbench/qasper"], name
    assert listed_keys(summed(of_one)[0]) == listed_keys(summed(rows)[0])


def test_bytes_are_those_of_the_tables_without_positions(rows: list[Row]) -> None:
    packed = with_forms(rows, {"snapkv@0.5": INT4})
    values = variant_readings(*summed(packed), packed)["snapkv@0.5"].values
    assert values["bytes/mean"] == values["kv_bytes/mean"] - values["position_bytes/mean"]


def test_the_sweeps_own_run_has_the_numbers_of_the_policy_with_the_least_nll(rows: list[Row]) -> None:
    packed = with_forms(rows)
    summary, differences = summed(packed)
    values = {label: it.values for label, it in variant_readings(summary, differences, packed).items()}
    best = best_policy(summary)
    assert best is not None and best.label == min(POLICIES, key=lambda label: values[label]["nll/mean"])
    told = sweep_readings(summary, differences, packed).values
    for name in ("score", "nll", "recovered", "kl", "bytes", "bytes_share", "kept"):
        assert told.get(f"best/{name}") == values[best.label].get(f"{name}/mean"), name
    assert {"best/score", "best/nll", "best/bytes"} <= told.keys()


def test_of_equal_policies_the_best_holds_the_fewest_bytes(rows: list[Row]) -> None:
    alike = {(row["item_id"]): row["answer_nll"] for row in rows if row["variant"] == "knorm@0.5"}
    for row in rows:
        if row["variant"] in POLICIES:
            row["answer_nll"] = alike[row["item_id"]]
    best = best_policy(summarize(with_forms(rows, {"snapkv@0.5": INT4})))
    assert best is not None and best.label == "snapkv@0.5"


@pytest.mark.parametrize(
    ("missing", "key"),
    [((), "nll/mean"), (("answer_nll",), "score/mean"), (("answer_nll", "score"), "kl/mean")],
)
def test_variants_are_ranked_by_the_first_number_that_there_is(
    rows: list[Row], missing: tuple[str, ...], key: str
) -> None:
    summary = summarize([row | dict.fromkeys(missing) for row in rows])
    found = ranking(summary)
    assert found is not None and found.key == key and found.is_less_better is (key != "score/mean")
    assert key in listed_keys(summary)


def test_without_policies_nothing_is_ranked(rows: list[Row]) -> None:
    summary = summarize([row for row in rows if row["variant"] not in POLICIES])
    assert ranking(summary) is None and best_policy(summary) is None


def test_the_sweeps_own_run_counts_what_the_headline_counts(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), POLICIES, TASKS, 60)
    summary, differences = summed(rows)
    told = sweep_readings(summary, differences, rows).values
    (sentence,) = headline(summary, differences)
    assert f"{told['verdicts/worse']:.0f} of 2 variants" in sentence
    assert told["verdicts/worse"] + told["verdicts/better"] + told["verdicts/unclear"] == len(POLICIES)
    few = [row for row in rows if row["item_id"].endswith(("/0", "/1"))]
    assert not {it for it in sweep_readings(*summed(few), few).values if it.startswith("verdicts/")}


def test_one_item_of_each_task_is_charted_for_all_variants_and_stays_it_when_items_are_added(
    seed: int,
) -> None:
    def charted(num_items: int) -> dict[str, dict[str, list[float]]]:
        rows = make_sweep_rows(random.Random(seed), POLICIES, TASKS, num_items)
        traces = charted_traces(rows)
        return {label: {it[0].key: [p.value for p in it] for it in found} for label, found in traces.items()}

    few, many = charted(3), charted(5)
    assert few.keys() == {"full", "full_aa", "no_context", *POLICIES} and few == many
    assert all(set(found) == {f"trace_bytes/{task}" for task in TASKS} for found in few.values())


def test_the_charted_item_is_one_the_full_cache_finished(rows: list[Row]) -> None:
    lost = [row for row in rows if row["item_id"] == f"{TASKS[0]}/0" and row["variant"] == "full"]
    lost[0] |= {"status": FAILED, "trace": None}
    second = next(row for row in rows if row["item_id"] == f"{TASKS[0]}/1" and row["variant"] == "knorm@0.5")
    second["trace"] = '[[0, "prefill", 7, 7]]'
    assert [point.value for point in charted_traces(rows)["knorm@0.5"][0]] == [7.0]


def test_params_are_flat_legal_and_without_passwords() -> None:
    settings = {
        "tracking": {"uri": "http://me:secret@host"},
        "tasks": [{"name": "a"}],
        "seed": 0,
        "x+y": None,
    }
    flat = flat_params(settings)
    assert flat["tracking.uri"] == "http://…@host" and flat["tasks.0.name"] == "a" and flat["seed"] == "0"
    assert not any("+" in key for key in flat) and len(flat) == 4


def test_no_item_is_charted_before_the_plans_first_of_its_task_is_there(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), POLICIES, TASKS, 4)
    planned = [RowKey(row["identity"], row["item_id"], row["variant"]) for row in rows]
    whole = charted_traces(rows, planned)
    assert whole == charted_traces(rows)
    lost = random.Random(seed).sample(sorted({row["item_id"] for row in rows}), 3)
    some = charted_traces([row for row in rows if row["item_id"] not in lost], planned)
    for label, traces in some.items():
        for trace in traces:
            assert trace in whole[label]  # of the same item, or of none
    first_of_the_second_task = f"{TASKS[1]}/0"
    early = charted_traces([row for row in rows if row["item_id"] != first_of_the_second_task], planned)
    assert all([it[0].key for it in found] == [f"trace_bytes/{TASKS[0]}"] for found in early.values())
