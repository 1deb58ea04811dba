"""Ratios become slots in one place, by the decimal the user wrote."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmerger.budget import (
    AskedBudget,
    BudgetError,
    BytesLike,
    BytesShare,
    KeptRatio,
    LayerBytes,
    LikeVariant,
    SlotCount,
    label_referred_to,
    num_slots_for,
    slots_like,
    slots_of_share,
)
from kvmerger.budget_text import budget_of_text, kept_ratio_from_compression_ratio, parse_budget
from kvmerger.cache.forms import registry
from kvmerger.cache.forms.base import Form
from kvmerger.cache.forms.shipped import Kivi


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
        ({"bytes": 0.2}, BytesShare(0.2)),
        ({"bytes": 1.0}, BytesShare(1.0)),
        ({"bytes": {"like": "a"}}, BytesLike("a")),
        ("bytes:0.2", BytesShare(0.2)),
        ("bytes:like:a@0.5+b", BytesLike("a@0.5+b")),
        ("like:a", LikeVariant("a")),
        ("5e-1", KeptRatio(0.5)),
        ("0.5", KeptRatio(0.5)),
        ("512", SlotCount(512)),
    ],
)
def test_every_spelling_is_read(value: object, expected: object) -> None:
    assert parse_budget(value) == expected


@pytest.mark.parametrize(
    "value", [0, 0.0, 1.5, -1, -0.5, True, "half", {"like": 3}, {"as": "a"}, None, float("nan")]
)
def test_anything_else_is_refused_with_what_would_be_right(value: object) -> None:
    with pytest.raises(BudgetError, match=r"kept fraction in \(0, 1\]"):
        parse_budget(value)


def test_one_byte_is_answered_with_all_of_them() -> None:
    for value in ({"bytes": 1}, "bytes:1"):
        with pytest.raises(BudgetError, match=r"write \{bytes: 1\.0\} for all bytes"):
            parse_budget(value)


@pytest.mark.parametrize("value", [0, 0.0, 1.5, 2**20, True, "0.2", None, {"as": "a"}, {"like": 3}])
def test_bytes_that_are_no_share_are_refused_with_what_would_be_right(value: object) -> None:
    with pytest.raises(BudgetError, match=r"fraction of the full cache's bytes in \(0, 1\]"):
        parse_budget({"bytes": value})


ASKED = [KeptRatio(0.5), KeptRatio(1.0), SlotCount(1), LikeVariant("a@1"), BytesShare(0.2), BytesLike("b")]


@pytest.mark.parametrize("budget", ASKED, ids=str)
def test_what_labels_say_of_a_budget_is_read_back(budget: AskedBudget) -> None:
    assert budget_of_text(str(budget)) == budget == parse_budget(budget)
    assert label_referred_to(budget) == getattr(budget, "label", None)


forms = st.sampled_from([None, *registry.names()])


def layer_of(form: str | None, head_dim: int, num_heads: int, itemsize: int, has_mass: bool) -> LayerBytes:
    made = None if form is None else registry.get(form)()
    return LayerBytes(num_heads, head_dim, itemsize, made, has_mass)


@given(
    form=forms,
    head_dim=st.sampled_from([64, 128]),
    num_heads=st.integers(1, 5),
    itemsize=st.sampled_from([2, 4]),
    has_mass=st.booleans(),
    thousandths=st.integers(1, 1000),
    num_tokens=st.integers(1, 300),
)
def test_slots_of_a_share_of_bytes_are_the_most_that_fit(
    form: str | None,
    head_dim: int,
    num_heads: int,
    itemsize: int,
    has_mass: bool,
    thousandths: int,
    num_tokens: int,
) -> None:
    layer = layer_of(form, head_dim, num_heads, itemsize, has_mass)
    full = 2 * head_dim * itemsize * num_heads * num_tokens

    def taken(num_slots: int) -> int:
        of_form = 2 * head_dim * itemsize * num_heads * num_slots
        if layer.form is not None:
            of_form = layer.form.num_bytes((num_slots,) * num_heads, head_dim)
        return of_form + (4 * num_heads * num_slots if has_mass else 0)

    # Slowly: every number of slots is tried, by whole numbers.
    fitting = [n for n in range(1, num_tokens + 1) if 1000 * taken(n) <= thousandths * full]
    share = BytesShare(thousandths / 1000)
    if not fitting:
        with pytest.raises(BudgetError, match=f"one slot in each of {num_heads} heads takes {taken(1)}"):
            slots_of_share(share, layer, num_tokens)
        return
    assert slots_of_share(share, layer, num_tokens) == max(fitting)
    assert layer.full(num_tokens) == full and layer.of((max(fitting),) * num_heads) == taken(max(fitting))
    like = BytesLike("other")
    assert slots_like(like, 7 * taken(max(fitting)) + 6, 7, layer, num_tokens) == max(fitting)


uneven_forms = st.one_of(
    st.sampled_from([registry.get(name)() for name in registry.names()]),
    st.builds(
        Kivi,
        bits_k=st.sampled_from([2, 3, 4, 8]),
        bits_v=st.just(4),
        group_size=st.sampled_from([16, 32, 64, 128]),
    ),
)


@st.composite
def splits(draw: st.DrawFn, total: int, num_heads: int, most: int) -> list[int]:
    """``total`` slots in so many heads, at most ``most`` in one; often one slot behind the end of a group."""
    counts: list[int] = []
    for left in range(num_heads - 1, -1, -1):
        rest = total - sum(counts)
        low, high = max(0, rest - left * most), min(most, rest)
        count = draw(st.integers(low, high))
        group = draw(st.sampled_from([1, 16, 32, 64, 128]))
        behind = count // group * group + 1
        counts.append(behind if low <= behind <= high else count)
    return counts


@given(
    form=uneven_forms,
    head_dim=st.sampled_from([64, 128]),
    num_heads=st.integers(1, 5),
    num_layers=st.integers(1, 3),
    has_mass=st.booleans(),
    thousandths=st.integers(1, 1000),
    num_tokens=st.integers(1, 400),
    is_like=st.booleans(),
    data=st.data(),
)
def test_however_heads_and_layers_share_the_slots_a_budget_of_bytes_is_not_exceeded_and_nearly_used(
    form: Form,
    head_dim: int,
    num_heads: int,
    num_layers: int,
    has_mass: bool,
    thousandths: int,
    num_tokens: int,
    is_like: bool,
    data: st.DataObject,
) -> None:
    layer = LayerBytes(num_heads, head_dim, 2, form, has_mass, is_uneven=True)
    asked = Fraction(thousandths, 1000) * 4 * head_dim * num_heads * num_tokens * num_layers
    try:
        if is_like:
            num_slots = slots_like(BytesLike("other"), int(asked), num_layers, layer, num_tokens)
        else:
            num_slots = slots_of_share(BytesShare(thousandths / 1000), layer, num_tokens)
    except BudgetError:
        assert num_layers * layer.of((1,) * num_heads) > asked - num_layers
        return
    counts = data.draw(splits(num_slots * num_heads * num_layers, num_heads * num_layers, num_tokens))
    of_layers = [counts[start : start + num_heads] for start in range(0, len(counts), num_heads)]
    assert sum(map(layer.of, of_layers)) <= asked
    # Of an even split at most one slot of every head is left over, and the scales of one group of keys.
    a_slot = layer.of((2 * 3**2 * 128,)) / (2 * 3**2 * 128)
    a_group = 4 * head_dim if isinstance(form, Kivi) else 0
    even = layer.of((num_slots,) * num_heads) * num_layers
    assert num_slots == num_tokens or asked - even < num_layers * (num_heads * (a_slot + a_group) + 2)


@given(form=uneven_forms, num_slots=st.integers(1, 60), num_heads=st.integers(1, 3), is_default=st.booleans())
def test_the_bytes_of_the_worst_split_are_those_of_the_split_that_takes_most(
    form: Form, num_slots: int, num_heads: int, is_default: bool
) -> None:
    # Slowly: each split is tried, head by head.
    worst = {0: 0}
    for _ in range(num_heads):
        worst = {
            total: max(
                worst[total - own] + form.num_bytes((own,), 64)
                for own in range(total + 1)
                if total - own in worst
            )
            for total in range(num_slots + 1)
        }
    most = (Form if is_default else type(form)).most_bytes(form, num_slots, num_heads, 64)
    a_group = 4 * 64 if isinstance(form, Kivi) else 0
    # Heads without slots have no group.
    is_tight = num_slots < num_heads or most <= worst[num_slots] + a_group + 1
    assert worst[num_slots] <= most and is_tight


def test_the_share_that_an_error_names_is_the_least_that_does() -> None:
    layer = layer_of("kivi4", 128, 8, 2, False)
    with pytest.raises(BudgetError, match=r"bytes:0.001 is .* give \{bytes: (0\.\d+)\} or more") as caught:
        slots_of_share(BytesShare(0.001), layer, 500)
    named = float(str(caught.value).partition("give {bytes: ")[2].partition("}")[0])
    assert slots_of_share(BytesShare(named), layer, 500) >= 1
    with pytest.raises(BudgetError):
        slots_of_share(BytesShare(named - 1e-6), layer, 500)
    # A group is charged whole: on one token kivi's scales are more than the numbers they stand for.
    with pytest.raises(BudgetError, match="leave out such short prompts"):
        slots_of_share(BytesShare(1.0), layer_of("kivi4", 128, 8, 2, True), 1)


def test_plain_slots_take_what_the_full_cache_takes_and_log_masses_come_on_top() -> None:
    assert slots_of_share(BytesShare(0.7), layer_of(None, 64, 3, 2, False), 10) == 7
    assert slots_of_share(BytesShare(0.7), layer_of(None, 64, 3, 2, True), 10) == 6
    assert slots_of_share(BytesShare(1.0), layer_of("fp8", 64, 3, 2, False), 10) == 10, (
        "no more than there are"
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("50%", "budget '50%' (50% is 0.5) is none of"),
        ("12.5 %", "(12.5 % is 0.125)"),
        ("1/2", "budget '1/2' (1/2 is 0.5) is none of"),
        ("3/2", "budget '3/2' is none of"),
        ("150%", "budget '150%' is none of"),
        ({"bytes": "25%"}, "budget {bytes: '25%'} (25% is 0.25) is none of"),
    ],
)
def test_what_people_write_for_a_fraction_is_answered_with_it(value: object, told: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_budget(value)
    assert told in str(caught.value)


@pytest.mark.parametrize("value", [1, 1.0, -0.1, True, "0.5"])
def test_an_impossible_compression_ratio_is_refused(value: object) -> None:
    with pytest.raises(BudgetError, match="compression_ratio"):
        kept_ratio_from_compression_ratio(value)  # type: ignore[arg-type]
