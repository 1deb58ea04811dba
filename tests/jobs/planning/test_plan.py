"""The plan: every (item x variant) exactly once — done, impossible, or in one unit — and the same each time."""

import dataclasses
from collections.abc import Sequence

import pytest

from evaluators.item import BenchmarkItem
from evaluators.prompting import TokenizedPrompt
from jobs.planning.plan import PlanError
from jobs.planning.rows import GeneratedPromptError
from kvmerger.names import VariantError
from kvmerger.variants import REFERENCE_LABELS, VariantSpec
from tests.fakes.plans import Model, identities, item, plan_of, settings_of


def test_every_item_meets_every_variant_once_references_included() -> None:
    plan = plan_of(settings_of(), [item(0), item(1)])
    wanted = {
        (f"bench/task/{index}", label) for index in (0, 1) for label in (*REFERENCE_LABELS, "knorm@0.5")
    }
    assert [(key.item_id, key.label) for unit in plan.units for key in unit.row_keys] == [
        (planned.key.item_id, planned.key.label) for planned in plan.rows
    ]
    assert {(planned.key.item_id, planned.key.label) for planned in plan.rows} == wanted
    assert plan.num_rows == len(wanted) == 8 and plan.num_done == 0


def test_the_plan_is_the_same_each_time() -> None:
    items = [item(index) for index in range(5)]
    assert plan_of(settings_of(), items) == plan_of(settings_of(), items)


def test_what_is_done_drops_out() -> None:
    items = [item(0), item(1)]
    whole = plan_of(settings_of(), items)
    rest = plan_of(settings_of(), items, done=identities(whole)[:3])
    assert rest.num_done == 3 and rest.num_rows == whole.num_rows
    assert sorted(key.identity for unit in rest.units for key in unit.row_keys) == sorted(
        identities(whole)[3:]
    )
    assert plan_of(settings_of(), items, done=identities(whole)).units == ()


def test_a_variant_added_later_is_all_that_is_computed() -> None:
    before = plan_of(settings_of(), [item(0)])
    more = settings_of(
        ["full", {"name": "knorm", "budget": 0.5}, {"name": "random", "budget": {"like": "knorm@0.5"}}]
    )
    after = plan_of(more, [item(0)], done=identities(before))
    assert [key.label for unit in after.units for key in unit.row_keys] == ["random@like:knorm@0.5"]
    # The variant it is like must run again, although its row exists.
    assert [spec.label for spec in after.units[0].variants] == ["knorm@0.5", "random@like:knorm@0.5"]


def refuse_short(spec: VariantSpec, num_tokens: int) -> str | None:
    return f"{num_tokens} tokens are too few" if num_tokens < 20 else None


def test_an_impossible_row_is_planned_but_in_no_unit() -> None:
    plan = plan_of(settings_of(), [item(0, context="short"), item(1)], check=refuse_short)
    assert [(it.key.item_id, it.key.label) for it in plan.impossible] == [("bench/task/0", "knorm@0.5")]
    assert "too few" in str(plan.impossible[0].impossible_reason)
    assert plan.num_rows == 8 and sum(len(unit.row_keys) for unit in plan.units) == 7


def test_a_variant_like_an_impossible_one_is_impossible() -> None:
    settings = settings_of(
        [{"name": "knorm", "budget": 0.5}, {"name": "random", "budget": {"like": "knorm@0.5"}}]
    )

    def refuse_knorm(spec: VariantSpec, num_tokens: int) -> str | None:
        return refuse_short(spec, num_tokens) if spec.policy == "knorm" else None

    plan = plan_of(settings, [item(0, context="short"), item(1)], check=refuse_knorm)
    assert [it.key.label for it in plan.impossible] == ["knorm@0.5", "random@like:knorm@0.5"]
    assert "like 'knorm@0.5'" in str(plan.impossible[1].impossible_reason)


def test_a_variant_that_no_item_can_run_is_refused_with_its_reason() -> None:
    with pytest.raises(PlanError, match=r"'knorm@0\.5' \(budget 0\.5\).*too few"):
        plan_of(settings_of(), [item(0, context="short")], check=refuse_short)


def test_an_item_without_a_prompt_costs_only_its_own_rows() -> None:
    empty = item(0, before_context="", context="", after_context="")
    plan = plan_of(settings_of(), [empty, item(1)])
    assert {it.key.item_id for it in plan.impossible} == {"bench/task/0"} and len(plan.impossible) == 4
    with pytest.raises(PlanError, match="empty"):
        plan_of(settings_of(), [empty])


def num_tokens(tokens: TokenizedPrompt) -> int:
    return len(tokens.context_ids) + len(tokens.tail_ids)


@pytest.mark.parametrize("num_gold", [1, 5, 6, 200])
def test_prompt_and_answer_fit_the_model_and_a_long_gold_answer_shortens_nothing(num_gold: int) -> None:
    long = item(
        0, context=" ".join(["word"] * 100), max_new_tokens=10, answers=(" ".join(["gold"] * num_gold),)
    )
    tokens = plan_of(settings_of(query_mode="query_aware"), [long]).units[0].items[0].tokens
    # Where the text is cut, two words become one token, so that the answer has 11 positions; a word and its blank take two.
    assert tokens.is_truncated and num_tokens(tokens) == Model().max_positions - 11
    fits = num_gold <= 5
    assert len(tokens.gold_ids) == (2 * num_gold if fits else 0)
    assert ("leaves it 11 of the model's 64 positions" in tokens.no_gold_reason) != fits


@pytest.mark.parametrize("num_words", [*range(16, 30)])
def test_a_prompt_below_the_limit_is_cut_where_template_or_prefix_leave_it_no_room(num_words: int) -> None:
    long = item(0, context=" ".join(["word"] * num_words), answer_prefix=" it is", max_new_tokens=10)
    tokens = plan_of(settings_of(query_mode="query_aware"), [long]).units[0].items[0].tokens
    assert num_tokens(tokens) <= Model().max_positions - 10
    assert tokens.is_truncated == (tokens.num_original_tokens > Model().max_positions - 10)
    assert num_tokens(tokens) >= min(tokens.num_original_tokens, Model().max_positions - 12)


@pytest.mark.parametrize("max_new_tokens", [63, 64, 5000])
def test_answer_tokens_that_leave_no_room_are_named_and_not_a_limit_nobody_set(max_new_tokens: int) -> None:
    with pytest.raises(PlanError, match=f"{max_new_tokens:,} answer tokens .* in the 64 positions") as caught:
        plan_of(settings_of(), [item(0, max_new_tokens=max_new_tokens)])
    assert "max_prompt_tokens" not in str(caught.value)


def test_an_answer_prefix_that_leaves_no_room_is_named() -> None:
    prefix = " so" * 40
    with pytest.raises(PlanError, match="beside the chat template and the answer prefix"):
        plan_of(settings_of(), [item(0, answer_prefix=prefix)])


@pytest.mark.parametrize("mode", ["query_aware", "query_agnostic"])
@pytest.mark.parametrize("num_words", [20, 100])
def test_a_generated_prompt_is_whole_or_an_error_and_never_cut(mode: str, num_words: int) -> None:
    made = item(0, context=" ".join(["word"] * num_words), is_generated=True)
    settings = settings_of(query_mode=mode)
    if num_words == 20:
        (row, *_) = plan_of(settings, [made, item(1)]).rows
        same = plan_of(settings, [dataclasses.replace(made, is_generated=False), item(1)]).rows[0]
        assert row.planned is not None and not row.planned.tokens.is_truncated
        assert row.key.identity == same.key.identity  # what was computed before stays done
        return
    # Beside an item that fits: the sweep is not to run and lose the rows of this one.
    with pytest.raises(
        GeneratedPromptError,
        match=r"^bench/task: .* the model has 64 positions; set the task's `length` to 64",
    ):
        plan_of(settings, [item(1), made])


def test_a_generated_prompt_is_not_cut_to_max_prompt_tokens_either() -> None:
    settings = settings_of(model={"max_prompt_tokens": 12})
    with pytest.raises(
        GeneratedPromptError, match=r"model\.max_prompt_tokens is 12; raise it, or lower the task's `length`"
    ):
        plan_of(settings, [item(0, is_generated=True)])


def test_max_prompt_tokens_cuts_shorter_than_the_model_must() -> None:
    settings = settings_of(model={"max_prompt_tokens": 12}, query_mode="query_aware")
    tokens = plan_of(settings, [item(0)]).units[0].items[0].tokens
    assert tokens.is_truncated and len(tokens.context_ids) + len(tokens.tail_ids) == 12


def test_a_budget_that_holds_everything_is_foreseen_as_degenerate() -> None:
    policies = [
        {"name": "knorm", "budget": 500},
        {"name": "random", "budget": 3},
        {"name": "kvmerger_paper", "budget": 1.0},
    ]
    assert plan_of(settings_of(policies), [item(0)]).degenerate_labels == ("knorm@500",)


@pytest.mark.parametrize(
    ("items", "complaint"), [([], "no items"), ([item(0), item(0, context="b")], "'bench/task/0'")]
)
def test_items_that_cannot_be_told_apart_or_are_none_are_refused(
    items: Sequence[BenchmarkItem], complaint: str
) -> None:
    with pytest.raises(PlanError, match=complaint):
        plan_of(settings_of(), items)


def test_two_names_for_one_computation_are_refused() -> None:
    twice = [{"name": "knorm", "budget": 0.5}, {"name": "knorm", "compression_ratio": 0.5, "label": "b"}]
    with pytest.raises(VariantError, match=r"'knorm@0\.5' and 'b' are the same"):
        plan_of(settings_of(twice), [item(0)])


def test_integrity_sees_a_row_that_is_in_no_unit() -> None:
    plan = plan_of(settings_of(), [item(0)])
    with pytest.raises(RuntimeError, match="4 owed, 0 in units"):
        dataclasses.replace(plan, units=()).check_integrity()
