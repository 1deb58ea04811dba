"""The plan: every (item x variant) exactly once — done, impossible, or in one unit — and the same plan each time."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest

from evaluators.item import BenchmarkItem
from jobs.cells import VariantFacts
from jobs.config import Settings
from jobs.plan import Plan, PlanError, build_plan
from kvmerger.variants import REFERENCE_LABELS, VariantError, VariantSpec

CONTEXT = "one two three four five six seven eight nine ten"


class WordTokenizer:
    """A real, if small, tokenizer: a word or a blank is a token; ids are stable numbers of the words."""

    bos_token_id = None
    eos_token_id = 0
    chat_template = None

    def __init__(self) -> None:
        self._words: dict[int, str] = {}

    def __call__(self, text: str, **options: Any) -> Mapping[str, Any]:
        ids, spans, start = [], [], 0
        for word in text.replace(" ", "\0 \0").split("\0"):
            if word:
                ids.append(zlib.crc32(word.encode()))
                self._words[ids[-1]] = word
                spans.append((start, start + len(word)))
                start += len(word)
        return {"input_ids": ids, "offset_mapping": spans}

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        raise AssertionError("this tokenizer has no chat template")

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        return "".join(self._words[token] for token in token_ids)


class Model(NamedTuple):
    """The facts of a model that a plan reads."""

    name: str = "tiny"
    revision: str | None = "r1"
    dtype: str = "float32"
    num_layers: int = 2
    num_kv_heads: int = 3
    head_dim: int = 4
    max_positions: int = 64


def item(index: int, **values: Any) -> BenchmarkItem:
    """Item `index`; items share the context unless told otherwise."""
    shape: dict[str, Any] = {
        "item_id": f"bench/task/{index}",
        "benchmark": "bench",
        "task": "task",
        "cluster_id": "c",
        "before_context": "read this: ",
        "context": CONTEXT,
        "after_context": f" what is number {index}",
        "answer_prefix": "",
        "answers": (f"word{index}",),
        "max_new_tokens": 4,
        "use_chat_template": False,
        "metric": "qa_f1",
    }
    return BenchmarkItem(**(shape | values))


def settings_of(
    policies: Sequence[Any] = ("full", {"name": "knorm", "budget": 0.5}), **values: Any
) -> Settings:
    """Settings without a file; the task is a placeholder, since items are given to the plan."""
    shape: dict[str, Any] = {
        "tasks": ["longbench/qasper"],
        "policies": list(policies),
        "query_mode": "query_agnostic",
    }
    return Settings.model_validate(shape | values)


def never_impossible(spec: VariantSpec, num_tokens: int) -> str | None:
    return None


def plan_of(
    settings: Settings,
    items: Sequence[BenchmarkItem],
    done: Sequence[str] = (),
    check: Any = never_impossible,
    **values: Any,
) -> Plan:
    facts = {
        spec.label: VariantFacts(values.get("version", "1"), spec.policy == "kvmerger_paper")
        for spec in settings.variants
    }
    model = values.get("model", Model())
    return build_plan(settings, {"bench/task": items}, WordTokenizer(), model, facts, done, check)


def identities(plan: Plan) -> list[str]:
    return [planned.cell.identity for planned in plan.cells]


def test_every_item_meets_every_variant_once_references_included() -> None:
    plan = plan_of(settings_of(), [item(0), item(1)])
    wanted = {
        (f"bench/task/{index}", label) for index in (0, 1) for label in (*REFERENCE_LABELS, "knorm@0.5")
    }
    assert [(cell.item_id, cell.label) for unit in plan.units for cell in unit.cells] == [
        (planned.cell.item_id, planned.cell.label) for planned in plan.cells
    ]
    assert {(planned.cell.item_id, planned.cell.label) for planned in plan.cells} == wanted
    assert plan.num_cells == len(wanted) == 8 and plan.num_done == 0


def test_questions_on_one_context_share_a_unit_only_when_the_context_is_compressed_alone() -> None:
    items = [item(0), item(1), item(2, context=CONTEXT + " eleven")]
    agnostic = plan_of(settings_of(), items).units
    assert [len(unit.items) for unit in agnostic] == [2, 1]
    assert len({planned.tokens.context_ids for planned in agnostic[0].items}) == 1
    assert [len(unit.items) for unit in plan_of(settings_of(query_mode="query_aware"), items).units] == [
        1,
        1,
        1,
    ]


def test_the_plan_is_the_same_each_time() -> None:
    items = [item(index) for index in range(5)]
    assert plan_of(settings_of(), items) == plan_of(settings_of(), items)


def test_what_is_done_drops_out() -> None:
    items = [item(0), item(1)]
    whole = plan_of(settings_of(), items)
    rest = plan_of(settings_of(), items, done=identities(whole)[:3])
    assert rest.num_done == 3 and rest.num_cells == whole.num_cells
    assert sorted(cell.identity for unit in rest.units for cell in unit.cells) == sorted(
        identities(whole)[3:]
    )
    assert plan_of(settings_of(), items, done=identities(whole)).units == ()


def test_a_variant_added_later_is_all_that_is_computed() -> None:
    before = plan_of(settings_of(), [item(0)])
    more = settings_of(
        ["full", {"name": "knorm", "budget": 0.5}, {"name": "random", "budget": {"like": "knorm@0.5"}}]
    )
    after = plan_of(more, [item(0)], done=identities(before))
    assert [cell.label for unit in after.units for cell in unit.cells] == ["random@like:knorm@0.5"]
    # The variant it is like must run again, although its row exists.
    assert [spec.label for spec in after.units[0].variants] == ["knorm@0.5", "random@like:knorm@0.5"]


CHANGES: dict[str, dict[str, Any]] = {
    "context": {"item": {"context": "other words"}},
    "question": {"item": {"after_context": " what else"}},
    "gold": {"item": {"answers": ("another",)}},
    "answer length": {"item": {"max_new_tokens": 5}},
    "item id": {"item": {"item_id": "bench/task/9"}},
    "parameter": {"settings": {"policies": ["full", {"name": "knorm", "budget": 0.5, "seed": 1}]}},
    "budget": {"settings": {"policies": ["full", {"name": "knorm", "budget": 0.4}]}},
    "mode": {"settings": {"query_mode": "query_aware"}},
    "execution": {"settings": {"execution": "isolated"}},
    "seed": {"settings": {"seed": 1}},
    "version": {"version": "2"},
    "revision": {"model": Model(revision="r2")},
    "dtype": {"model": Model(dtype="bfloat16")},
}
NO_CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "label": {"settings": {"policies": ["full", {"name": "knorm", "budget": 0.5, "label": "mine"}]}},
    "executor": {"settings": {"executor": "inline"}},
    "folder": {"settings": {"output_dir": "elsewhere"}},
    "other variants": {
        "settings": {"policies": [{"name": "random", "budget": 0.1}, {"name": "knorm", "budget": 0.5}]}
    },
    "metadata": {"item": {"metadata": {"depth": 1}}},
}


def identity_of_knorm(change: Mapping[str, Any]) -> str:
    settings = settings_of(**change.get("settings", {}))
    rest = {key: value for key, value in change.items() if key in ("model", "version")}
    plan = plan_of(settings, [item(0, **change.get("item", {}))], **rest)
    return next(it.cell.identity for it in plan.cells if it.spec.policy == "knorm")


@pytest.mark.parametrize("name", CHANGES)
def test_what_can_change_a_row_changes_its_identity(name: str) -> None:
    assert identity_of_knorm(CHANGES[name]) != identity_of_knorm({})


@pytest.mark.parametrize("name", NO_CHANGES)
def test_what_cannot_change_a_row_leaves_its_identity(name: str) -> None:
    assert identity_of_knorm(NO_CHANGES[name]) == identity_of_knorm({})


def test_a_like_variant_is_another_when_what_it_is_like_changes() -> None:
    def identity(budget: float, label: str) -> str:
        named = {"name": "knorm", "budget": budget, "label": label}
        plan = plan_of(
            settings_of([named, {"name": "random", "budget": {"like": label}, "label": "r"}]), [item(0)]
        )
        return next(it.cell.identity for it in plan.cells if it.cell.label == "r")

    assert identity(0.5, "a") == identity(0.5, "b") != identity(0.4, "a")


def test_the_split_between_context_and_tail_is_part_of_the_identity() -> None:
    longer = {
        "before_context": "read this: " + CONTEXT,
        "context": " and",
        "after_context": " what is number 0",
    }
    shorter = longer | {"context": "", "after_context": " and what is number 0"}
    plans = [plan_of(settings_of(), [item(0, **shape)]) for shape in (longer, shorter)]
    both = [plan.units[0].items[0].tokens for plan in plans]
    assert both[0].context_ids + both[0].tail_ids == both[1].context_ids + both[1].tail_ids
    assert identities(plans[0])[0] != identities(plans[1])[0]


def refuse_short(spec: VariantSpec, num_tokens: int) -> str | None:
    return f"{num_tokens} tokens are too few" if num_tokens < 20 else None


def test_an_impossible_cell_is_planned_but_in_no_unit() -> None:
    plan = plan_of(settings_of(), [item(0, context="short"), item(1)], check=refuse_short)
    assert [(it.cell.item_id, it.cell.label) for it in plan.impossible] == [("bench/task/0", "knorm@0.5")]
    assert "too few" in str(plan.impossible[0].impossible_reason)
    assert plan.num_cells == 8 and sum(len(unit.cells) for unit in plan.units) == 7


def test_a_variant_like_an_impossible_one_is_impossible() -> None:
    settings = settings_of(
        [{"name": "knorm", "budget": 0.5}, {"name": "random", "budget": {"like": "knorm@0.5"}}]
    )

    def refuse_knorm(spec: VariantSpec, num_tokens: int) -> str | None:
        return refuse_short(spec, num_tokens) if spec.policy == "knorm" else None

    plan = plan_of(settings, [item(0, context="short"), item(1)], check=refuse_knorm)
    assert [it.cell.label for it in plan.impossible] == ["knorm@0.5", "random@like:knorm@0.5"]
    assert "like 'knorm@0.5'" in str(plan.impossible[1].impossible_reason)


def test_a_variant_that_no_item_can_run_is_refused_with_its_reason() -> None:
    with pytest.raises(PlanError, match=r"'knorm@0\.5' \(budget 0\.5\).*too few"):
        plan_of(settings_of(), [item(0, context="short")], check=refuse_short)


def test_an_item_without_a_prompt_costs_only_its_own_cells() -> None:
    empty = item(0, before_context="", context="", after_context="")
    plan = plan_of(settings_of(), [empty, item(1)])
    assert {it.cell.item_id for it in plan.impossible} == {"bench/task/0"} and len(plan.impossible) == 4
    with pytest.raises(PlanError, match="empty"):
        plan_of(settings_of(), [empty])


def test_prompt_and_answer_fit_the_model() -> None:
    long = item(0, context=" ".join(["word"] * 100), max_new_tokens=10, answers=(" ".join(["gold"] * 10),))
    plan = plan_of(settings_of(query_mode="query_aware"), [long])
    tokens = plan.units[0].items[0].tokens
    answer = max(10, len(tokens.gold_ids))
    assert tokens.is_truncated and answer == 20
    assert 30 < len(tokens.context_ids) + len(tokens.tail_ids) + answer <= Model().max_positions


def test_max_prompt_tokens_cuts_shorter_than_the_model_must() -> None:
    settings = settings_of(model={"max_prompt_tokens": 12}, query_mode="query_aware")
    tokens = plan_of(settings, [item(0)]).units[0].items[0].tokens
    assert tokens.is_truncated and len(tokens.context_ids) + len(tokens.tail_ids) == 12


def test_a_long_queue_of_questions_is_cut_into_units_of_equal_size() -> None:
    many = [item(index) for index in range(40)] + [item(100 + n, context=f"{CONTEXT} {n}") for n in range(9)]
    plan = plan_of(settings_of(), many)
    sizes = [len(unit.items) for unit in plan.units if len(unit.items) > 1]
    assert sum(sizes) == 40 and len(sizes) > 4 and max(sizes) - min(sizes) <= max(sizes) // 2
    costs = [unit.cost_tokens for unit in plan.units]
    assert max(costs) <= 2.5 * sorted(costs)[len(costs) // 2]


def test_foreseen_bytes_are_those_of_the_shapes() -> None:
    policies = ["full", {"name": "knorm", "budget": 0.5}, {"name": "kvmerger_paper", "budget": 0.5}]
    plan = plan_of(settings_of(policies), [item(0)])
    tokens = plan.units[0].items[0].tokens
    num_context, num_tail = len(tokens.context_ids), len(tokens.tail_ids) + item(0).max_new_tokens
    num_rows = len(REFERENCE_LABELS) + 2
    slots = num_context + num_context // 2 + num_context  # full, knorm, and at most everything
    assert plan.predicted_bytes == (slots + num_rows * num_tail) * 2 * 2 * 3 * 4 * 4


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


def test_integrity_sees_a_cell_that_is_in_no_unit() -> None:
    plan = plan_of(settings_of(), [item(0)])
    with pytest.raises(RuntimeError, match="4 owed, 0 in units"):
        dataclasses.replace(plan, units=()).check_integrity()
