"""A number on the page has its interval, within what the quantity can be, and what is not known is a dash."""

import pytest

from evaluators.statistics.intervals import Interval, mean_interval
from jobs.analysis.variant_summary import NllScale, VariantSummary, summarize_variant
from jobs.reporting.notation import UNKNOWN, plain, shown_count, shown_interval, shown_score
from jobs.results.schema import FAILED
from tests.fakes.rows import make_row


def variant_of(scores: list[float | None], *, is_binary: bool, num_failed: int = 0) -> VariantSummary:
    rows = [make_row(f"r{i}", cluster_id=f"c{i}", score=score) for i, score in enumerate(scores)]
    rows += [make_row(f"f{i}", status=FAILED) for i in range(num_failed)]
    return summarize_variant("a", rows, NllScale({}, {}, {}), is_binary)


def test_the_ends_are_cut_to_what_the_quantity_can_be() -> None:
    interval = Interval(0.9, 0.7, 1.1, 3, 3, "student_t", True)
    assert shown_interval(interval, "{:.1f}", highest=1.0) == ("0.9", "0.7 to 1.0")


def test_one_context_has_a_mean_and_no_ends() -> None:
    assert shown_interval(mean_interval([0.5, 0.25], ["c", "c"])) == ("0.375", "")


def test_what_is_not_known_is_a_dash() -> None:
    nothing = variant_of([None], is_binary=True)
    assert shown_interval(None).mean == shown_score(nothing).mean == plain(None) == UNKNOWN


def test_right_or_wrong_is_a_count_with_its_exact_interval() -> None:
    """Clopper-Pearson for 3 of 4: 19 % to 99 %."""
    assert shown_score(variant_of([1.0, 1.0, 1.0, 0.0], is_binary=True)) == ("3 of 4", "19% to 99%")


def test_other_scores_are_0_to_100() -> None:
    shown = shown_score(variant_of([0.2, 0.4, 0.9], is_binary=False))
    low, high = map(float, shown.ends.split(" to "))
    assert float(shown.mean) == pytest.approx(50.0) and 0 <= low < 50 < high <= 100


def test_failed_rows_show_in_the_count() -> None:
    assert shown_count(variant_of([1.0, 0.0], is_binary=True)) == "2"
    assert shown_count(variant_of([1.0, 0.0], is_binary=True, num_failed=1)) == "2 of 3"
