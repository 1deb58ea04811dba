"""Ratios become slots in one place, by the decimal the user wrote."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmerger.budget import (
    BudgetError,
    KeptRatio,
    LikeVariant,
    SlotCount,
    kept_ratio_from_compression_ratio,
    num_slots_for,
    parse_budget,
)


@given(hundredths=st.integers(1, 100), num_tokens=st.integers(1, 200_000))
def test_a_ratio_is_rounded_down_exactly(hundredths: int, num_tokens: int) -> None:
    num_slots = num_slots_for(KeptRatio(hundredths / 100), num_tokens)
    assert num_slots == max(1, hundredths * num_tokens // 100)


@given(hundredths=st.integers(0, 99), num_tokens=st.integers(1, 200_000))
def test_removing_and_keeping_the_complement_are_the_same(hundredths: int, num_tokens: int) -> None:
    kept = kept_ratio_from_compression_ratio(hundredths / 100)
    assert Fraction(str(kept.ratio)) == 1 - Fraction(hundredths, 100)
    assert num_slots_for(kept, num_tokens) == max(1, (100 - hundredths) * num_tokens // 100)


def test_a_count_is_a_count_and_never_more_than_there_is() -> None:
    assert num_slots_for(SlotCount(512), 1000) == 512
    assert num_slots_for(SlotCount(512), 100) == 100


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, KeptRatio(0.5)),
        (1.0, KeptRatio(1.0)),
        (512, SlotCount(512)),
        (1, SlotCount(1)),
        ({"like": "a"}, LikeVariant("a")),
    ],
)
def test_the_three_spellings_are_read(value: object, expected: object) -> None:
    assert parse_budget(value) == expected


@pytest.mark.parametrize(
    "value", [0, 0.0, 1.5, -1, -0.5, True, "half", {"like": 3}, {"as": "a"}, None, float("nan")]
)
def test_anything_else_is_refused_with_what_would_be_right(value: object) -> None:
    with pytest.raises(BudgetError, match=r"kept fraction in \(0, 1\]"):
        parse_budget(value)


@pytest.mark.parametrize("value", [1, 1.0, -0.1, True, "0.5"])
def test_an_impossible_compression_ratio_is_refused(value: object) -> None:
    with pytest.raises(BudgetError, match="compression_ratio"):
        kept_ratio_from_compression_ratio(value)  # type: ignore[arg-type]
