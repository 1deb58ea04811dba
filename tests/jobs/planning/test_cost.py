"""What each task costs adds up to what its units cost, and nothing is charged twice."""

from __future__ import annotations

import numpy as np
import pytest

from evaluators.item import BenchmarkItem
from jobs.planning.cost import TaskCost, cost_tokens_of, task_costs
from jobs.planning.plan import Plan
from kvmerger.variants import REFERENCE_LABELS
from tests.fakes.plans import CONTEXT, Model, item, plan_of, settings_of

ROOMY = Model(max_positions=20_000)


def costs_of(plan: Plan) -> dict[str, TaskCost]:
    kv_bytes = {size.unit_id: size.kv_bytes for size in plan.unit_sizes}
    return {it.task: it for it in task_costs(plan.units, kv_bytes)}


def drawn(rng: np.random.Generator, index: int) -> BenchmarkItem:
    context = "" if rng.random() < 0.3 else f"{CONTEXT} {int(rng.integers(3))}"
    return item(
        index,
        task=f"task{int(rng.integers(3))}",
        before_context="read this: " if context else "",
        context=context,
        max_new_tokens=int(rng.choice([1, 30, 8192])),
        cluster_id=str(index),
    )


@pytest.mark.parametrize("items_at_once", [1, 4])
def test_what_tasks_cost_adds_up_to_what_the_units_do(seed: int, items_at_once: int) -> None:
    rng = np.random.default_rng(seed)
    items = [drawn(rng, index) for index in range(12)]
    policies = ["full", "knorm@0.5"] + (["kvzip@0.5"] if rng.random() < 0.5 else [])
    plan = plan_of(settings_of(policies, items_at_once=items_at_once), items, model=ROOMY)
    costs = costs_of(plan)
    prompts = sum(
        len(unit.items[its[0]].tokens.context_ids) for unit in plan.units for its in unit.contexts
    ) + sum(len(it.tokens.tail_ids) for unit in plan.units for it in unit.items)
    assert sum(it.prompt_tokens for it in costs.values()) == prompts
    assert sum(it.cost_tokens for it in costs.values()) == pytest.approx(
        sum(unit.cost_tokens for unit in plan.units)
    )
    assert max(it.kv_bytes for it in costs.values()) == plan.predicted_bytes
    for task, cost in costs.items():
        own = [it for it in items if f"bench/{it.task}" == task]
        assert cost.num_items == len(own)
        rows = len(REFERENCE_LABELS) + len(policies) - 1
        assert cost.answer_tokens == rows * sum(it.max_new_tokens for it in own)


def test_only_what_is_owed_costs() -> None:
    items = [item(0), item(1, task="long", before_context="", context="", max_new_tokens=8192)]
    whole = plan_of(settings_of(), items, model=ROOMY)
    short = [it.key.identity for it in whole.rows if it.item.task == "task"]
    costs = costs_of(plan_of(settings_of(), items, done=short, model=ROOMY))
    assert list(costs) == ["bench/long"]
    # Nothing but its own prompt and the steps of the longest answer.
    prompt = whole.rows[-1].planned
    assert prompt is not None and prompt.tokens.is_context_free
    num_tokens = len(prompt.tokens.context_ids)
    assert costs["bench/long"].cost_tokens == cost_tokens_of(num_tokens, [8192], is_repeated=False)
    assert (
        costs_of(plan_of(settings_of(), items, done=[it.key.identity for it in whole.rows], model=ROOMY))
        == {}
    )
