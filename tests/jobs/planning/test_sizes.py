"""Slots and bytes are foreseen per variant as the engine will count them, without weights."""

import pytest

from jobs.planning.plan import Plan
from jobs.planning.sizes import ForeseenSize, bytes_per_token, itemsize_of
from kvmerger.cache.forms import registry
from kvmerger.variants import REFERENCE_LABELS
from tests.fakes.plans import CONTEXT, Model, identities, item, plan_of, settings_of

# 2 layers of 3 heads of 64 bf16 numbers; ten words with blanks, and what stands before them.
MODEL = Model(head_dim=64, dtype="bfloat16")
A_SLOT = 2 * 64 * 2
HEADS = 3 * 2


def foreseen(*policies: object) -> tuple[Plan, dict[str, ForeseenSize]]:
    plan = plan_of(settings_of(policies), [item(0)], model=MODEL)
    return plan, {it.label: it.size for it in plan.variants if it.size is not None}


def test_every_budget_is_foreseen_in_slots_and_bytes() -> None:
    plan, sizes = foreseen(
        "knorm@0.5",
        "knorm@3",
        "knorm@0.5+int8",
        "knorm+keepkv@0.5",
        "knorm+keepkv@0.5+fp8",
        "knorm@bytes:0.5",
        "knorm@bytes:0.5+fp8",
        "knorm@bytes:0.25+int8",
        "int8",
        {"name": "random+fp8", "budget": {"like": "knorm@0.5"}},
        {"name": "random+fp8", "budget": {"bytes": {"like": "knorm@0.5+int8"}}},
        {"name": "random", "budget": {"bytes": {"like": "int8"}}},
        {"name": "random+fp8", "budget": {"bytes": {"like": "full"}}},
        {"name": "random", "budget": {"like": "full"}},
    )
    n = plan.typical_tokens
    assert n == len(plan.units[0].items[0].tokens.context_ids)
    half = n // 2
    expected = {
        "full": (n, n * A_SLOT),
        "no_context": (0, 0),
        "full_aa": (n, n * A_SLOT),
        "knorm@0.5": (half, half * A_SLOT),
        "knorm@3": (3, 3 * A_SLOT),
        "knorm@0.5+int8": (half, half * 136),
        "knorm+keepkv@0.5": (half, half * (A_SLOT + 4)),
        "knorm+keepkv@0.5+fp8": (half, half * 132),
        "knorm@bytes:0.5": (half, half * A_SLOT),
        "knorm@bytes:0.5+fp8": (n, n * 128),
        "knorm@bytes:0.25+int8": (slots := n * A_SLOT // 4 // 136, slots * 136),
        "int8": (n, n * 136),
        "random+fp8@like:knorm@0.5": (half, half * 128),
        "random+fp8@bytes:like:knorm@0.5+int8": (slots := half * 136 // 128, slots * 128),
        "random@bytes:like:int8": (slots := n * 136 // A_SLOT, slots * A_SLOT),
        "random+fp8@bytes:like:full": (n, n * 128),
        "random@like:full": (n, n * A_SLOT),
    }
    assert sizes == {
        label: ForeseenSize(num_slots, num_bytes * HEADS)
        for label, (num_slots, num_bytes) in expected.items()
    }
    assert plan.typical_bytes == n * A_SLOT * HEADS == n * bytes_per_token(MODEL)


@pytest.mark.parametrize("name", registry.names())
def test_a_form_alone_takes_what_it_says_of_all_slots(name: str) -> None:
    plan, sizes = foreseen(name)
    num_bytes = registry.get(name)().num_bytes((plan.typical_tokens,) * 3, 64) * 2
    assert sizes[name] == ForeseenSize(plan.typical_tokens, num_bytes)
    assert not plan.degenerate_labels


def test_where_the_prompt_decides_everything_may_be_kept_and_so_by_those_who_are_like_it() -> None:
    plan, sizes = foreseen(
        {"name": "kvmerger_paper+int8", "budget": 0.5, "label": "paper"},
        {"name": "random", "budget": {"like": "paper"}, "label": "slots"},
        {"name": "random+fp8", "budget": {"bytes": {"like": "paper"}}, "label": "bytes"},
    )
    n = plan.typical_tokens
    assert sizes["paper"] == ForeseenSize(n, n * 136 * HEADS, is_at_most=True)
    assert sizes["slots"] == ForeseenSize(n, n * A_SLOT * HEADS, is_at_most=True)
    assert sizes["bytes"] == ForeseenSize(n, n * 128 * HEADS, is_at_most=True)
    assert not plan.degenerate_labels


def test_a_budget_of_bytes_that_holds_everything_is_foreseen_as_degenerate() -> None:
    plan, _ = foreseen("knorm@bytes:0.5+fp8", "knorm@bytes:0.4+fp8", "knorm@bytes:0.4+int4", "fp8")
    assert plan.degenerate_labels == ("knorm@bytes:0.5+fp8", "knorm@bytes:0.4+int4")


def test_a_size_that_cannot_be_foreseen_is_none_and_costs_no_plan() -> None:
    small = {"name": "knorm+int8", "budget": {"bytes": 0.001}, "label": "small"}
    plan = plan_of(
        settings_of([small, {"name": "random", "budget": {"bytes": {"like": "small"}}, "label": "like"}]),
        [item(0)],
        model=MODEL,
    )
    assert {it.label for it in plan.variants if it.size is None} == {"small", "like"}


def test_a_typical_prompt_is_the_median_one() -> None:
    items = [item(n, context=" ".join([CONTEXT] * n)) for n in (1, 2, 3)]
    plan = plan_of(settings_of(), items, model=MODEL._replace(max_positions=500))
    lengths = [len(unit.items[0].tokens.context_ids) for unit in plan.units]
    assert plan.typical_tokens == sorted(lengths)[1] < max(lengths)


def test_foreseen_bytes_of_a_unit_are_those_of_its_forms() -> None:
    def num_bytes(*policies: object) -> int:
        return foreseen(*policies)[0].predicted_bytes

    n = foreseen("fp8")[0].typical_tokens
    assert num_bytes("knorm@1.0") - num_bytes("fp8") == n * (A_SLOT - 128) * HEADS
    assert num_bytes("knorm@1.0") - num_bytes("int4") == n * (A_SLOT - 72) * HEADS


def test_who_is_like_anothers_bytes_runs_with_it_and_has_its_identity() -> None:
    def planned(share: float, done: tuple[str, ...] = ()) -> Plan:
        policies = [
            {"name": "knorm", "budget": share, "label": "a"},
            {"name": "random+fp8", "budget": {"bytes": {"like": "a"}}, "label": "b"},
        ]
        return plan_of(settings_of(policies), [item(0)], done=done, model=MODEL)

    whole = planned(0.5)
    of_b, elsewhere = (identities(plan)[len(REFERENCE_LABELS) + 1] for plan in (whole, planned(0.4)))
    assert of_b != elsewhere
    rest = planned(0.5, tuple(it for it in identities(whole) if it != of_b))
    assert [key.label for key in rest.units[0].row_keys] == ["b"]
    assert [spec.label for spec in rest.units[0].variants] == ["a", "b"]


def test_a_dtype_of_unknown_size_is_named() -> None:
    assert [itemsize_of(Model(dtype=it)) for it in ("float32", "torch.bfloat16", "float16")] == [4, 2, 2]
    with pytest.raises(ValueError, match="'int8'"):
        itemsize_of(Model(dtype="int8"))


def test_who_spends_bytes_is_foreseen_to_take_them_in_any_number_of_slots() -> None:
    plan, sizes = foreseen(
        {"name": "rdkv", "budget": {"bytes": 0.25}, "window_size": 4},
        {"name": "rdkv", "budget": {"bytes": {"like": "knorm@0.5+int8"}}, "label": "like"},
        "knorm@0.5+int8",
        {"name": "random", "budget": {"like": "rdkv@bytes:0.25"}, "label": "slots"},
        {"name": "random", "budget": {"bytes": {"like": "rdkv@bytes:0.25"}}, "label": "bytes"},
    )
    n = plan.typical_tokens
    quarter = n * A_SLOT * 3 // 4 // 3 * HEADS
    assert sizes["rdkv@bytes:0.25"] == ForeseenSize(n, quarter, is_at_most=True)
    assert sizes["like"] == ForeseenSize(n, n // 2 * 136 * HEADS, is_at_most=True)
    assert sizes["slots"] == ForeseenSize(n, n * A_SLOT * HEADS, is_at_most=True)
    assert sizes["bytes"] == ForeseenSize(n // 4, n // 4 * A_SLOT * HEADS, is_at_most=True)
