"""Units: one prefill each, about equally long, and foreseen in bytes."""

from kvmerger.variants import REFERENCE_LABELS
from tests.jobs.plan_fakes import CONTEXT, item, plan_of, settings_of


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


def test_foreseen_bytes_count_every_rows_own_slots() -> None:
    def foreseen(policy: str) -> int:
        plan = plan_of(settings_of([{"name": policy, "budget": 0.5}]), [item(0), item(1)])
        assert len(plan.units) == 1, "two questions on one context"
        return plan.predicted_bytes

    (unit,) = plan_of(settings_of([{"name": "knorm", "budget": 0.5}]), [item(0), item(1)]).units
    num_kept = len(unit.items[0].tokens.context_ids) // 2
    num_own = sum(num_kept + 2 * len(planned.tokens.tail_ids) for planned in unit.items)
    assert foreseen("knorm+streaming_llm_decode") - foreseen("knorm") == num_own * 2 * 2 * 3 * 4 * 4
