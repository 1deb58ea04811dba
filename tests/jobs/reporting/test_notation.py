"""A number has its interval, within what the quantity can be, and what is not known is a dash."""

import pytest

from evaluators.statistics.intervals import Interval, mean_interval
from evaluators.statistics.skewed import skewed_mean_interval
from jobs.analysis.pairing import ANSWER_NLL, SCORE
from jobs.analysis.variant_summary import NllScale, VariantSummary, summarize_variant
from jobs.reporting.notation import (
    NO_SPREAD,
    UNKNOWN,
    counted,
    human_bytes,
    percent,
    plain,
    shown_count,
    shown_difference,
    shown_interval,
    shown_p,
    shown_score,
    shown_value,
    signed,
    visible,
)
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


def test_an_interval_that_is_not_told_gives_its_reason() -> None:
    kl = skewed_mean_interval([0.5, 0.25], ["a", "b"])
    assert shown_interval(kl).on_one_line() == "0.375 [under 20 contexts]"


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


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**40, "5.0 TiB")],
)
def test_bytes_are_shown_in_the_unit_that_fits(num_bytes: float | None, text: str) -> None:
    assert human_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("p_value", "text"), [(None, "-"), (1.0, "1.000"), (0.0123, "0.012"), (0.001, "0.001"), (1e-9, "<0.001")]
)
def test_a_small_p_has_one_spelling(p_value: float | None, text: str) -> None:
    assert shown_p(p_value) == text


def test_a_difference_is_in_its_metrics_unit_and_within_what_scores_allow() -> None:
    interval = Interval(-0.5, -1.25, 0.25, 3, 3, "student_t", True)
    assert shown_difference(SCORE, interval) == ("-50.0", "-100.0 to +25.0")
    assert shown_difference(ANSWER_NLL, interval) == ("-0.500", "-1.250 to +0.250")
    assert (shown_value(SCORE, 0.5), shown_value(ANSWER_NLL, 0.5)) == ("50.0", "0.500")


def test_equal_differences_have_no_spread_and_nothing_is_compared_is_a_dash() -> None:
    equal = mean_interval([0.5, 0.5], ["a", "b"])
    assert shown_difference(SCORE, equal).on_one_line() == f"+50.0 [{NO_SPREAD}]"
    assert shown_difference(SCORE, None).on_one_line() == shown_value(SCORE, None) == UNKNOWN


@pytest.mark.parametrize("layout", ["{:+.1f}", "{:+.3f}", "{:+.3g}"])
def test_what_rounds_to_zero_has_no_sign(layout: str) -> None:
    assert {signed(value, layout)[0] for value in (0.0, -0.0)} == {"0"}
    assert (signed(-0.04, "{:+.1f}"), signed(-0.06, "{:+.1f}"), signed(10.0, "{:+.1f}")) == (
        "0.0",
        "-0.1",
        "+10.0",
    )


def test_counts_and_ratios_are_words_and_percents() -> None:
    assert (counted(0, "context"), counted(1, "context")) == ("0 contexts", "1 context")
    assert (percent(None), percent(0.4987), percent(0.4987, 0)) == (UNKNOWN, "49.9%", "50%")


def test_control_and_direction_characters_are_shown_and_long_texts_cut() -> None:
    assert visible("a\x1b[31m\u202eb\n\tc\x00") == "a⟨U+001B⟩[31m⟨U+202E⟩b\n\tc⟨U+0000⟩"
    assert visible("x" * 5000).endswith("x…") and len(visible("x" * 5000)) < 2000
    assert visible(None) == ""
