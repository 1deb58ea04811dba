"""A verdict stands only when everything that doubt demands agrees, and says what stands in its way otherwise."""

from __future__ import annotations

import pytest
from scipy import stats

from jobs.analysis.differences import (
    NO_SCALE,
    NOT_SIGNIFICANT,
    Difference,
    differences_between,
    differences_to_full,
)
from jobs.analysis.pairing import ANSWER_NLL, SCORE, ComparedMetric
from jobs.results.schema import FAILED, Row
from tests.fakes.pairs import LOSSES, paired_rows


def one(
    found: tuple[Difference, ...], label: str, metric: ComparedMetric, task: str | None = "benchmark/a"
) -> Difference:
    return next(it for it in found if (it.label, it.metric, it.task) == (label, metric, task))


def test_a_loss_is_worse_in_both_metrics_whichever_way_they_count(seed: int) -> None:
    found = differences_to_full(paired_rows(seed))
    for metric, sign in ((SCORE, -1), (ANSWER_NLL, 1)):
        got = one(found, "snapkv@0.5", metric)
        assert got.paired is not None and got.paired.interval.mean * sign > 0
        assert (got.verdict, got.reason) == ("worse", "")
        assert (got.num_pairs, got.num_dropped, got.reference) == (60, 0, "full")
    assert {it.label for it in found} == {"snapkv@0.5", "kvmerger@0.5"}


def test_numbers_are_those_of_the_pairs(seed: int) -> None:
    rows = paired_rows(seed)
    got = one(differences_to_full(rows), "snapkv@0.5", ANSWER_NLL)
    values = {
        label: [row["answer_nll"] for row in rows if row["variant"] == label]
        for label in ("snapkv@0.5", "full")
    }
    expected = stats.ttest_rel(values["snapkv@0.5"], values["full"]).confidence_interval(0.95)
    assert got.paired is not None
    assert (got.paired.interval.low, got.paired.interval.high) == pytest.approx((expected.low, expected.high))
    assert got.policy_mean == pytest.approx(sum(values["snapkv@0.5"]) / 60)
    assert (got.policy_storage.held_bytes, got.reference_storage.held_bytes) == (2**20, 2**21)


def test_better_is_said_as_well(seed: int) -> None:
    found = differences_between(paired_rows(seed), [("kvmerger@0.5", "snapkv@0.5")])
    assert one(found, "kvmerger@0.5", ANSWER_NLL).verdict == "better"
    assert one(found, "kvmerger@0.5", ANSWER_NLL).reference == "snapkv@0.5"
    mirrored = differences_between(paired_rows(seed), [("snapkv@0.5", "kvmerger@0.5")])
    assert one(mirrored, "snapkv@0.5", ANSWER_NLL).verdict == "worse"


def test_the_order_of_rows_changes_nothing(seed: int) -> None:
    rows = paired_rows(seed, tasks=("a", "bb"))
    found, again = differences_to_full(rows), differences_to_full(rows[::-1])
    assert len(found) == len(again) == 12
    for it in found:
        other = one(again, it.label, it.metric, it.task)
        assert it.paired is not None and other.paired is not None
        assert other.paired.interval.mean == pytest.approx(it.paired.interval.mean)
        assert other.paired.interval.low == pytest.approx(it.paired.interval.low)
        assert other.adjusted_p == pytest.approx(it.adjusted_p)
        assert (other.verdict, other.num_pairs) == (it.verdict, it.num_pairs)


def test_too_few_contexts_carry_no_verdict(seed: int) -> None:
    got = one(differences_to_full(paired_rows(seed, num_items=49)), "snapkv@0.5", ANSWER_NLL)
    assert (got.verdict, got.reason) == ("inconclusive", "too few: 49 contexts of 50")


def test_too_few_flips_carry_no_verdict_and_are_counted(seed: int) -> None:
    rows = paired_rows(seed)
    for row in rows:
        index = int(row["item_id"].partition("/")[2])
        row["score"] = float(index >= 5) if row["variant"] == "snapkv@0.5" else 1.0
    got = one(differences_to_full(rows), "snapkv@0.5", SCORE)
    assert (got.flips, got.test) == ((5, 0), "mcnemar_exact")
    assert (got.verdict, got.reason) == ("inconclusive", "too few: 5 items differ, of 6")


def test_a_task_without_a_scale_carries_no_verdict_and_is_in_no_mean(seed: int) -> None:
    with_scale = paired_rows(seed, tasks=("a", "bb"))
    without = [
        row | {"answer_nll": 1.0 if row["variant"] in ("full", "no_context") else row["answer_nll"]}
        for row in paired_rows(seed, tasks=("c",))
    ]
    found = differences_to_full(with_scale + without)
    assert one(found, "snapkv@0.5", SCORE, "benchmark/c").reason == NO_SCALE
    assert one(found, "snapkv@0.5", SCORE, None).tasks == ("benchmark/a", "benchmark/bb")


def test_a_difference_inside_the_noise_of_two_full_caches_carries_no_verdict(seed: int) -> None:
    rows = paired_rows(seed, losses=LOSSES | {"full_aa": 0.5})
    for row in rows:
        if row["variant"] == "full_aa":
            row["answer_nll"] += 0.5
    got = one(differences_to_full(rows), "snapkv@0.5", ANSWER_NLL)
    assert got.floor is not None and got.floor.size > 0.5 and got.floor.flip_ratio == 1
    assert (got.verdict, got.reason) == ("inconclusive", "inside the A/A noise")
    without = [row for row in rows if row["variant"] != "full_aa"]
    assert one(differences_to_full(without), "snapkv@0.5", ANSWER_NLL).floor is None


def test_holm_counts_all_variants_and_tasks_of_one_metric_and_nothing_else(seed: int) -> None:
    found = differences_to_full(paired_rows(seed, tasks=("a", "bb", "ccc")))
    of_tasks = [it for it in found if it.metric is SCORE and it.task is not None]
    assert {it.family_size for it in of_tasks} == {6} and len(of_tasks) == 6
    assert {it.family_size for it in found if it.task is None} == {2}
    smallest = min(it.p_value for it in of_tasks if it.p_value is not None)
    assert min(it.adjusted_p for it in of_tasks if it.adjusted_p is not None) == pytest.approx(6 * smallest)


def test_a_difference_that_the_family_explains_is_inconclusive(seed: int) -> None:
    """Seven flips one way have p = 2/128 alone; with a dozen harmless variants beside them that is nothing."""
    labels = [f"random@{index}" for index in range(12)]
    rows = paired_rows(seed, losses=LOSSES | dict.fromkeys(labels, 0.0))
    for row in rows:
        index = int(row["item_id"].partition("/")[2])
        row["score"] = float(not (row["variant"] == "snapkv@0.5" and index < 7))
    got = one(differences_to_full(rows), "snapkv@0.5", SCORE)
    assert got.p_value is not None and got.p_value < 0.05 and got.paired is not None
    assert got.paired.verdict == "lower"
    assert (got.verdict, got.reason) == ("inconclusive", NOT_SIGNIFICANT)


def test_the_mean_over_tasks_weighs_them_the_same(seed: int) -> None:
    rows = paired_rows(seed, 60, ("a",)) + paired_rows(seed, 180, ("bb",), LOSSES | {"snapkv@0.5": 0.9})
    found = differences_to_full(rows)
    means = [one(found, "snapkv@0.5", ANSWER_NLL, task) for task in ("benchmark/a", "benchmark/bb", None)]
    values = [it.paired.interval.mean for it in means if it.paired is not None]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2)
    assert (means[2].verdict, means[2].num_pairs) == ("worse", 240)


def test_failed_and_unscored_items_are_no_pairs_and_no_pair_is_no_verdict(seed: int) -> None:
    rows = paired_rows(seed)
    lost = [row for row in rows if row["variant"] == "snapkv@0.5"]
    lost[0] |= {"status": FAILED, "failure_phase": "x", "failure_type": "y"}
    lost[1]["score"] = None
    got = one(differences_to_full(rows), "snapkv@0.5", SCORE)
    assert (got.num_pairs, got.dropped) == (58, {"failed in snapkv@0.5": 1, "no score in snapkv@0.5": 1})
    for row in lost:
        row["score"] = None
    got = one(differences_to_full(rows), "snapkv@0.5", SCORE)
    assert (got.paired, got.p_value, got.adjusted_p, got.policy_mean) == (None, None, None, None)
    assert (got.verdict, got.reason) == ("inconclusive", "no item has both numbers")


@pytest.mark.parametrize("column", ["query_mode", "model", "model_revision", "execution"])
def test_rows_of_two_settings_never_meet(seed: int, column: str) -> None:
    first = paired_rows(seed)
    second: list[Row] = [row | {column: "other"} for row in paired_rows(seed + 1)]
    found = differences_to_full(first + second)
    assert len({it.setting for it in found}) == 2
    assert all(it.num_pairs == 60 and it.family_size == 2 for it in found)


def test_nothing_has_no_differences() -> None:
    assert differences_to_full([]) == ()
