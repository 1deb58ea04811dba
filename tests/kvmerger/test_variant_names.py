"""Names with forms and budgets in them: every spelling is one variant, with one label."""

import pytest

from kvmerger.budget import BudgetError, BytesLike, BytesShare, KeptRatio, LikeVariant, SlotCount
from kvmerger.names import VariantError
from kvmerger.variant_names import read_name, spelling
from kvmerger.variants import VariantSpec, parse_policies, parse_policy_entry


@pytest.mark.parametrize(
    ("entry", "label", "policy", "budget"),
    [
        ("snapkv@0.5", "snapkv@0.5", "snapkv", KeptRatio(0.5)),
        ("snapkv@0.5+fp8", "snapkv@0.5+fp8", "snapkv+fp8", KeptRatio(0.5)),
        ("snapkv+fp8@0.5", "snapkv@0.5+fp8", "snapkv+fp8", KeptRatio(0.5)),
        ({"name": "snapkv+fp8", "budget": 0.5}, "snapkv@0.5+fp8", "snapkv+fp8", KeptRatio(0.5)),
        ({"name": "snapkv+fp8", "compression_ratio": 0.5}, "snapkv@0.5+fp8", "snapkv+fp8", KeptRatio(0.5)),
        (
            "keydiff@0.6+keepkv+kivi4",
            "keydiff+keepkv@0.6+kivi4",
            "keydiff+keepkv+kivi4",
            KeptRatio(0.6),
        ),
        ("snapkv@512+int8", "snapkv@512+int8", "snapkv+int8", SlotCount(512)),
        ("snapkv@bytes:0.2+int4", "snapkv@bytes:0.2+int4", "snapkv+int4", BytesShare(0.2)),
        ({"name": "snapkv", "budget": {"bytes": 0.2}}, "snapkv@bytes:0.2", "snapkv", BytesShare(0.2)),
        ({"name": "snapkv", "budget": "bytes:0.2"}, "snapkv@bytes:0.2", "snapkv", BytesShare(0.2)),
        ("h2o+int4+h2o_decode@0.5", "h2o@0.5+int4+h2o_decode", "h2o+int4+h2o_decode", KeptRatio(0.5)),
        ("snapkv@0.5+fp8_e4m3", "snapkv@0.5+fp8", "snapkv+fp8", KeptRatio(0.5)),
        ("adakv_snapkv@0.5+fp8", "snapkv+adakv@0.5+fp8", "snapkv+adakv+fp8", KeptRatio(0.5)),
        ("kvmerger_paper@0.5+fp8", "kvmerger_paper[0.17+0.12]+fp8", "kvmerger_paper+fp8", KeptRatio(0.5)),
        ("cam@0.5", "cam@0.5", "streaming_llm+cam", KeptRatio(0.5)),
        ("snapkv@0.5+my.module:MyForm", "snapkv@0.5+MyForm", "snapkv+my.module:MyForm", KeptRatio(0.5)),
        ("my:Mine@0.5+my:Form", "Mine@0.5+Form", "my:Mine+my:Form", KeptRatio(0.5)),
        ("fp8", "fp8", "fp8", None),
        ("full+fp8", "fp8", "fp8", None),
        ("no_press+fp8", "fp8", "fp8", None),
        ("fp8+h2o_decode", "fp8+h2o_decode", "fp8+h2o_decode", None),
        ("full+my.module:MyForm", "MyForm", "full+my.module:MyForm", None),
    ],
)
def test_every_spelling_has_one_label_and_one_policy(
    entry: object, label: str, policy: str, budget: object
) -> None:
    assert parse_policy_entry(entry) == [VariantSpec(label, policy, (), budget)]  # type: ignore[arg-type]


def test_a_budget_that_is_like_another_stands_last_since_a_label_has_plus_signs_of_its_own() -> None:
    for kind, prefix in ((LikeVariant, ""), (BytesLike, "bytes:")):
        like: object = {"like": "snapkv@0.5+fp8"}
        budget = {"bytes": like} if prefix else like
        by_key = parse_policy_entry({"name": "random+int4", "budget": budget})
        assert by_key[0].budget == kind("snapkv@0.5+fp8")
        assert by_key[0].label == f"random+int4@{prefix}like:snapkv@0.5+fp8"
        assert parse_policy_entry(by_key[0].label) == by_key


@pytest.mark.parametrize(
    "wanted",
    [
        "keydiff+keepkv@0.6+kivi4",
        "keydiff@0.6+keepkv+kivi4",
        "keydiff+keepkv+kivi4@0.6",
    ],
)
def test_a_budget_may_be_like_a_label_in_any_of_its_spellings(wanted: str) -> None:
    specs = parse_policies(
        ["keydiff@0.6+keepkv+kivi4", {"name": "random", "budget": {"like": wanted}, "label": "r"}]
    )
    assert specs[1].budget == LikeVariant("keydiff+keepkv@0.6+kivi4")
    in_bytes = parse_policies(
        ["keydiff@0.6+keepkv+kivi4", {"name": "random", "budget": {"bytes": {"like": wanted}}}]
    )
    assert in_bytes[1].budget == BytesLike("keydiff+keepkv@0.6+kivi4")


def test_a_spelling_goes_through_labels_in_labels_and_leaves_other_texts_alone() -> None:
    assert spelling("random@like:snapkv+fp8@0.5") == spelling("random@like:snapkv@0.5+fp8")
    assert spelling("cam@0.5") == spelling("streaming_llm+cam@0.5")
    assert spelling("full+fp8") == spelling("fp8") == "fp8"
    for text in ("mine", "mine@", "a b", "x@y@z", "kvmerger_paper[0.17+0.12]", "q8_0"):
        assert spelling(text) == text


def test_a_label_of_ones_own_comes_before_another_spelling() -> None:
    specs = parse_policies(
        [
            "snapkv@0.5+fp8",
            {"name": "knorm", "budget": 0.5, "label": "snapkv+fp8@0.5"},
            {"name": "random", "budget": {"like": "snapkv+fp8@0.5"}},
        ]
    )
    assert specs[2].budget == LikeVariant("snapkv+fp8@0.5")


def test_labels_of_ones_own_and_lists_of_budgets() -> None:
    several = parse_policy_entry({"name": "snapkv+kivi4", "budget": [0.5, {"bytes": 0.2}], "group_size": 64})
    assert [(it.label, it.params) for it in several] == [
        ("snapkv@0.5+kivi4", (("group_size", 64),)),
        ("snapkv@bytes:0.2+kivi4", (("group_size", 64),)),
    ]
    own = parse_policy_entry({"name": "snapkv+kivi4", "budget": [0.5, 0.4], "label": "mine"})
    assert [it.label for it in own] == ["mine@0.5", "mine@0.4"]
    assert parse_policy_entry({"name": "fp8", "label": "mine"}) == [VariantSpec("mine", "fp8")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("fp8@0.5", "keeps every slot and takes no budget, got 0.5.*snapkv@0.5\\+fp8"),
        ({"name": "fp8", "budget": {"bytes": 0.2}}, "got bytes:0.2"),
        ({"name": "full+my:Form", "budget": 0.5}, "snapkv@0.5\\+my:Form"),
        ("fp8+snapkv@0.5", "no policy before its form.*such as snapkv@0.5\\+fp8$"),
        ("snapkv+fp8", "needs a budget"),
        ("int4_rotatd", "did you mean 'int4_rotated'.*needs a budget"),
        ("fp8+int4", "one form"),
        ("snapkv@0.5+fp8+my:Form", "one form"),
        ("snapkv@0.5+fp8@0.4", "2 budgets, 0.5 and 0.4"),
        ({"name": "snapkv@0.5+fp8", "budget": 0.5}, "a budget in its name and `budget: 0.5`"),
        ({"name": "snapkv@0.5", "compression_ratio": 0.5}, "a budget in its name"),
        ("snapkv++fp8@0.5", "empty part"),
        ("snapkv@0.5+", "empty part"),
        ("snapkv@0.5+q8_0", "nearest of ours is 'int8'"),
        ("int5", "5 bits"),
    ],
)
def test_names_that_say_nothing_are_refused(entry: object, message: str) -> None:
    with pytest.raises(VariantError, match=message):
        parse_policy_entry(entry)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "budget", ["half", "0", "1.5", "bytes:2", "bytes:0", "bytes:like:", "like:", "bytes:x", ""]
)
def test_budgets_in_names_that_are_none_are_refused_with_the_name(budget: str) -> None:
    with pytest.raises(BudgetError, match=r"^'snapkv.*is none of"):
        parse_policy_entry(f"snapkv@{budget}+fp8" if not budget.endswith("like:") else f"snapkv+fp8@{budget}")


@pytest.mark.parametrize(
    ("wanted", "entry"),
    [
        ("snapkv@0.4+fp8", "{name: snapkv+fp8, budget: 0.4}"),
        ("snapkv+fp8@bytes:0.3", "{name: snapkv+fp8, budget: {bytes: 0.3}}"),
        ("int4", "int4"),
    ],
)
def test_a_missing_label_is_answered_with_its_entry(wanted: str, entry: str) -> None:
    with pytest.raises(VariantError) as caught:
        parse_policies([{"name": "random", "budget": {"bytes": {"like": wanted}}}])
    assert f"; add {entry} to the policies, or name a label that is there" in str(caught.value)


def test_identity_tells_forms_and_budgets_in_bytes_apart() -> None:
    names = ["snapkv@0.2", "snapkv@bytes:0.2", "snapkv@0.2+fp8", "snapkv@bytes:0.2+fp8", "fp8", "int8"]
    specs = parse_policies(
        [
            *names,
            {"name": "knorm", "budget": {"like": "fp8"}, "label": "slots"},
            {"name": "knorm", "budget": {"bytes": {"like": "fp8"}}, "label": "bytes"},
            {"name": "knorm", "budget": {"bytes": {"like": "int8"}}, "label": "others"},
        ]
    )
    by_label = {spec.label: spec for spec in specs}
    canonical = [spec.canonical(by_label) for spec in specs]
    assert all(canonical.count(it) == 1 for it in canonical)
    assert by_label["snapkv@bytes:0.2+fp8"].canonical()["budget"] == {"bytes": 0.2}
    assert by_label["bytes"].canonical(by_label)["budget"] == {"bytes": {"like": by_label["fp8"].canonical()}}


@pytest.mark.parametrize("kinds", [("like", "like"), ("like", "bytes"), ("bytes", "bytes")])
def test_budgets_in_slots_and_bytes_go_round_in_no_circle(kinds: tuple[str, str]) -> None:
    def entry(kind: str, label: str, other: str) -> dict:
        like: dict = {"like": other}
        return {"name": "knorm", "budget": {"bytes": like} if kind == "bytes" else like, "label": label}

    with pytest.raises(VariantError, match="circle"):
        parse_policies([entry(kinds[0], "a", "b"), entry(kinds[1], "b", "a")])


def test_a_names_parts_are_told_apart() -> None:
    written = read_name("h2o+keepkv+int4+h2o_decode@0.5")
    assert written.split == (("h2o", "keepkv"), "int4", ("h2o_decode",))
    assert not written.is_bare and read_name("full+int4").is_bare
