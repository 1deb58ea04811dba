"""B - A over the items and variants both have, and all else is said."""

import pytest

from jobs.analysis.comparability import ComparisonError
from jobs.analysis.comparison import Comparison, compare_folders, compare_variants
from jobs.analysis.differences import Difference, differences_between
from jobs.analysis.pairing import ANSWER_NLL, SCORE, ComparedMetric
from jobs.results.schema import FAILED
from tests.fakes.pairs import LOSSES, paired_rows


def one(
    found: Comparison, label: str, metric: ComparedMetric, task: str | None = "benchmark/a"
) -> Difference:
    return next(it for it in found.differences if (it.label, it.metric, it.task) == (label, metric, task))


def test_a_folder_against_itself_differs_in_nothing(seed: int) -> None:
    rows = paired_rows(seed, tasks=("a", "bb"))
    found = compare_folders(rows, rows, (), 0.02)
    assert {it.label for it in found.differences} == {"snapkv@0.5", "kvmerger@0.5"}
    for it in found.differences:
        assert it.paired is not None and it.paired.interval.mean == 0 and it.adjusted_p == 1
        assert it.verdict == "inconclusive"
    assert found.sum_of(SCORE) == (240, {}) and found.warnings == found.skipped == ()


def test_what_got_worse_is_worse_and_swapping_turns_it_round(seed: int) -> None:
    before, after = paired_rows(seed), paired_rows(seed, losses=LOSSES | {"kvmerger@0.5": 0.4})
    there, back = compare_folders(before, after, (), 0.02), compare_folders(after, before, (), 0.02)
    for metric in (SCORE, ANSWER_NLL):
        worse, better = one(there, "kvmerger@0.5", metric), one(back, "kvmerger@0.5", metric)
        assert (worse.verdict, better.verdict) == ("worse", "better")
        assert worse.paired is not None and better.paired is not None
        assert worse.paired.interval.mean == pytest.approx(-better.paired.interval.mean)
        assert worse.p_value == better.p_value
        assert one(there, "snapkv@0.5", metric).verdict == "inconclusive"


def test_the_margin_is_judged_on_the_score_of_each_task_and_their_mean(seed: int) -> None:
    tasks = ("a", "bb")
    before, after = (
        paired_rows(seed, tasks=tasks),
        paired_rows(seed, tasks=tasks, losses=LOSSES | {"kvmerger@0.5": 0.4}),
    )
    found = compare_folders(before, after, ("kvmerger@0.5",), 0.02)
    judged = [(found.differences[index], result) for index, result in found.margins.items()]
    assert [(it.metric, it.task) for it, _ in judged] == [
        (SCORE, "benchmark/a"),
        (SCORE, "benchmark/bb"),
        (SCORE, None),
    ]
    assert all(result.verdict == "fail" for _, result in judged)  # 4 points of 2
    generous = compare_folders(before, after, ("kvmerger@0.5",), 0.1)
    assert all(result.verdict == "pass" for result in generous.margins.values())


def test_variants_of_one_folder_from_two_devices_are_told(seed: int) -> None:
    rows = paired_rows(seed, device="cuda", device_name="NVIDIA H200")
    assert compare_variants(rows, "kvmerger@0.5", "snapkv@0.5", 0.02).warnings == ()
    later = [
        row | {"device_name": "NVIDIA H100"} if row["variant"] == "kvmerger@0.5" else row for row in rows
    ]
    (told,) = compare_variants(later, "kvmerger@0.5", "snapkv@0.5", 0.02).warnings
    assert told == "device's name: NVIDIA H200 in snapkv@0.5, NVIDIA H100 in kvmerger@0.5"


def test_two_variants_of_a_folder_are_the_difference_between_them(seed: int) -> None:
    rows = paired_rows(seed, tasks=("a", "bb"))
    got = compare_variants(rows, "kvmerger@0.5", "snapkv@0.5", 0.02)
    assert got.differences == differences_between(rows, [("kvmerger@0.5", "snapkv@0.5")])
    assert (got.name_a, got.name_b) == ("snapkv@0.5", "kvmerger@0.5")


def test_what_is_dropped_is_counted_and_what_is_not_compared_is_named(seed: int) -> None:
    before, after = paired_rows(seed), paired_rows(seed)
    next(row for row in after if row["variant"] == "snapkv@0.5")["status"] = FAILED
    after = [row for row in after if row["variant"] != "kvmerger@0.5"]
    after.append(after[0] | {"query_mode": "another", "identity": "x"})
    found = compare_folders(before, after, (), 0.02)
    assert found.sum_of(SCORE) == (59, {"failed in B": 1})
    assert found.skipped[0] == "only in A: kvmerger@0.5"
    assert "1 rows of models or query modes" in found.skipped[1]


def test_the_larger_noise_of_the_two_counts(seed: int) -> None:
    calm, noisy = paired_rows(seed), paired_rows(seed)
    for row in noisy:
        row["answer_nll"] += float(row["variant"] == "full_aa")
    for pair_of_rows in ((calm, noisy), (noisy, calm)):
        floor = one(compare_folders(*pair_of_rows, (), 0.02), "snapkv@0.5", ANSWER_NLL).floor
        assert floor is not None and floor.size == pytest.approx(1)


def test_no_scale_in_one_of_them_leaves_no_verdict_and_no_margin(seed: int) -> None:
    before = paired_rows(seed)
    after = [
        row | ({"answer_nll": 0.0} if row["variant"] == "no_context" else {})
        for row in paired_rows(seed, losses=LOSSES | {"kvmerger@0.5": 0.4})
    ]
    found = compare_folders(before, after, ("kvmerger@0.5",), 0.02)
    assert {it.verdict for it in found.differences} == {"inconclusive"}
    assert {it.verdict for it in found.margins.values()} == {"inconclusive"}


def test_unknown_labels_are_answered_with_the_nearest(seed: int) -> None:
    rows = paired_rows(seed, 3)
    with pytest.raises(ComparisonError, match=r"Did you mean 'snapkv@0.5'"):
        compare_folders(rows, rows, ("snapk@0.5",), 0.02)
    with pytest.raises(ComparisonError, match=r"Did you mean 'kvmerger@0.5'"):
        compare_variants(rows, "kvmerge@0.5", "full", 0.02)
    with pytest.raises(ComparisonError, match="against itself"):
        compare_variants(rows, "full", "full", 0.02)
    only_a, only_b = ([row for row in rows if row["variant"] == it] for it in ("full", "snapkv@0.5"))
    with pytest.raises(ComparisonError, match="no variant is in both"):
        compare_folders(only_a, only_b, (), 0.02)
