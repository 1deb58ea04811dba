"""Policy entries as people write them, and what an identity is made from."""

import pytest

from kvmerger.budget import BudgetError, KeptRatio, LikeVariant, SlotCount
from kvmerger.building import build_variant
from kvmerger.names import VariantError
from kvmerger.policies import registry
from kvmerger.policies.base import PolicyError
from kvmerger.variant_names import OUTCOMES
from kvmerger.variants import VariantSpec, parse_policies, parse_policy_entry


def test_a_list_of_budgets_gives_one_variant_each() -> None:
    specs = parse_policy_entry({"name": "snapkv", "budget": [0.5, 512], "window_size": 32})
    assert [(spec.label, spec.budget) for spec in specs] == [
        ("snapkv@0.5", KeptRatio(0.5)),
        ("snapkv@512", SlotCount(512)),
    ]
    assert all(spec.params == (("window_size", 32),) for spec in specs)


def test_kvpress_ratios_are_converted() -> None:
    assert parse_policy_entry({"name": "knorm", "compression_ratio": [0.7]})[0].budget == KeptRatio(0.3)


@pytest.mark.parametrize("name", ["full", "no_press", "baseline", "none", "full_cache"])
def test_the_full_cache_has_its_usual_names(name: str) -> None:
    assert parse_policy_entry(name) == [VariantSpec("full", "full")]


@pytest.mark.parametrize(
    ("budget", "label"), [(0.5, "kvmerger_paper[0.17+0.12]"), (0.35, "kvmerger_paper[0.08+0.02]")]
)
def test_the_papers_rows_promise_no_ratio(budget: float, label: str) -> None:
    assert parse_policy_entry({"name": "kvmerger_paper", "budget": budget})[0].label == label


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "snapkv", "ratio": 0.5}, "bare `ratio`"),
        ({"name": "snapkv", "budget": 0.5, "compression_ratio": 0.5}, "both"),
        ({"name": "snapkv"}, "needs a budget"),
        ({"name": "snapkv", "window_size": 8}, "needs a budget"),
        ({"name": "snapkv", "bugdet": 0.5}, r"unknown key 'bugdet' \(did you mean 'budget'\?\)"),
        ({"name": "snapkv", "compression": 0.5}, r"\(did you mean 'compression_ratio'\?\)"),
        ({"name": "snapkv", 3: 0.5}, "keys are words"),
        ({"name": "full", "budget": 0.5}, "takes no budget"),
        ({"budget": 0.5}, "name"),
        (7, "name"),
    ],
)
def test_unclear_entries_are_refused(entry: object, message: str) -> None:
    with pytest.raises(VariantError, match=message):
        parse_policy_entry(entry)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [0, 1.5])
def test_budgets_outside_their_range_are_refused(budget: float) -> None:
    with pytest.raises(BudgetError, match=str(budget)):
        parse_policy_entry({"name": "snapkv", "budget": budget})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "knorm", "budget": 0.5}, {"name": "knorm", "budget": 0.5}], "two policies have the label"),
        (
            [{"name": "knorm", "budget": {"like": "snapkv@0.5"}}, {"name": "snapkv", "budget": 0.4}],
            "did you mean 'snapkv@0.4'",
        ),
        ([{"name": "knorm", "budget": {"like": "a"}, "label": "a"}], "circle"),
        (
            [
                {"name": "knorm", "budget": {"like": "b"}, "label": "a"},
                {"name": "knorm", "budget": {"like": "a"}, "label": "b"},
            ],
            "circle",
        ),
    ],
)
def test_labels_must_lead_somewhere(entries: list, message: str) -> None:
    with pytest.raises(VariantError, match=message):
        parse_policies(entries)


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        (
            "kvmerger@0.5",
            "; add {name: kvmerger, budget: 0.5} to the policies, or name a label that is there",
        ),
        (
            "snapkv+adakv@512",
            "; add {name: snapkv+adakv, budget: 512} to the policies, or name a label that is there",
        ),
        ("snapkv@0.45", " (did you mean 'snapkv@0.4'?); add {name: snapkv, budget: 0.45} to the policies"),
        ("kvmrger@0.5", ""),
        ("kvmerger@1.5", ""),
        ("kvmerger@half", ""),
        ("kvmerger", ""),
    ],
)
def test_a_budget_like_a_missing_variant_is_answered_with_its_entry(wanted: str, hint: str) -> None:
    like = {"budget": {"like": wanted}}
    with pytest.raises(VariantError) as caught:
        parse_policies(
            [{"name": "random", **like}, {"name": "knorm", **like}, {"name": "snapkv", "budget": 0.4}]
        )
    told = f"'random@like:{wanted}' has a budget like {wanted!r}, which no policy is labelled{hint}"
    assert str(caught.value).startswith(told) and (hint or str(caught.value) == told)


def test_identity_ignores_labels_and_follows_like() -> None:
    def canonical(label: str, budget: float) -> dict:
        specs = parse_policies(
            [
                {"name": "snapkv", "budget": budget, "label": label},
                {"name": "random", "budget": {"like": label}, "label": "r"},
            ]
        )
        return specs[1].canonical({spec.label: spec for spec in specs})

    assert canonical("a", 0.5) == canonical("b", 0.5)
    assert canonical("a", 0.5) != canonical("a", 0.4)


def test_specs_are_hashable_values() -> None:
    spec = parse_policy_entry(
        {"name": "kvmerger", "budget": {"like": "x"}, "skip_layers": [0, -1], "label": "m"}
    )[0]
    assert hash(spec) == hash(VariantSpec("m", "kvmerger", (("skip_layers", (0, -1)),), LikeVariant("x")))
    assert build_variant(spec).policy.skip_layers == (0, -1)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (VariantSpec("x", "snapvk", (), KeptRatio(0.5)), VariantError, "did you mean 'snapkv'"),
        (
            VariantSpec("x", "snapkv", (("windw_size", 3),), KeptRatio(0.5)),
            VariantError,
            "did you mean 'window_size'",
        ),
        (VariantSpec("x", "snapkv", (("window_size", -3),), KeptRatio(0.5)), PolicyError, "window_size"),
    ],
)
def test_mistakes_in_a_spec_are_named(spec: VariantSpec, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_variant(spec)


def test_one_slot_and_everything_are_different_budgets() -> None:
    one, whole = parse_policy_entry({"name": "knorm", "budget": [1, 1.0]})
    assert (one.label, whole.label) == ("knorm@1", "knorm@1.0")
    assert one.canonical() != whole.canonical()


def test_ratios_that_print_alike_are_different_computations() -> None:
    near = parse_policy_entry({"name": "knorm", "budget": [0.1234567, 0.1234568]})
    assert near[0].canonical() != near[1].canonical()


@pytest.mark.parametrize("label", ["full", "no_context", "full_aa"])
def test_a_reference_rows_label_is_taken(label: str) -> None:
    with pytest.raises(VariantError, match="reference row"):
        parse_policies([{"name": "knorm", "budget": 0.5, "label": label}])


def test_a_budget_may_be_like_the_full_cache_but_not_like_none() -> None:
    parse_policies([{"name": "knorm", "budget": {"like": "full"}}])
    with pytest.raises(VariantError, match="no policy is labelled"):
        parse_policies(["no_context", {"name": "knorm", "budget": {"like": "no_context"}}])


def test_a_threshold_row_is_named_by_what_it_protects() -> None:
    entry = {"name": "kvmerger", "mode": "threshold", "budget": 0.5, "recent_ratio": 0.4, "heavy_ratio": 0.0}
    assert parse_policy_entry(entry)[0].label == "kvmerger[0.4+0]"
    assert parse_policy_entry(entry | {"recent_ratio": None})[0].label == "kvmerger[0.17+0]"


@pytest.mark.parametrize(
    "entry",
    [
        *({"name": name} for name in registry.names() if name not in OUTCOMES),
        *({"name": name, "mode": "threshold"} for name in ("kvmerger", "kvmerger_plus", "pivots_only")),
    ],
    ids=lambda entry: "-".join(entry.values()),
)
def test_a_label_names_the_budget_unless_the_class_says_that_it_decides_nothing(entry: dict) -> None:
    """Labels are made without torch, so what the class says of itself is said a second time for them."""
    is_in_bytes = registry.get(entry["name"]).spends_bytes
    (spec,) = parse_policy_entry(entry | {"budget": {"bytes": 0.5} if is_in_bytes else 0.5})
    is_outcome = build_variant(spec).policy.budget_is_outcome
    ends = spec.label.endswith("[0.17+0.12]"), spec.label.endswith("@bytes:0.5" if is_in_bytes else "@0.5")
    assert ends == (is_outcome, not is_outcome)
