"""A forecast follows the rows of its own folder, and says where it comes from."""

import json

import pytest

from jobs.analysis.forecast import forecast
from jobs.planning.cost import cost_tokens_of
from tests.fakes.plans import item, plan_of, settings_of

ROW = {
    "status": "ok",
    "execution": "fused",
    "unit_id": "u",
    "item_id": "i",
    "cluster_id": "c",
    "query_mode": "query_agnostic",
    "context_tokens": 100,
    "new_tokens": 3,
    "device_name": "NVIDIA H200",
}
SECONDS = {
    "prefill_shared_s": 2.0, "plan_shared_s": 0.25, "batch_shared_s": 0.125, "tails_shared_s": 0.5,
    "decode_shared_s": 3.0, "record_graph_shared_s": 0.75, "fidelity_shared_s": 1.0, "results_shared_s": 0.0625,
}  # fmt: skip
ONE_BATCH_S = 0.125 + 0.5 + 3 + 1 + 0.0625  # recording a graph lies within decoding


def row(variant: str, compress_s: float, **values: object) -> dict:
    return {**ROW, "variant": variant, "seconds": json.dumps({**SECONDS, "compress_s": compress_s}), **values}


def test_measured_units_set_the_pace_and_shared_phases_count_once() -> None:
    plan = plan_of(settings_of(), [item(1), item(2)])
    rows = [row("a", 0.5), row("b", 1.5), {**ROW, "status": "failed", "seconds": None, "unit_id": "v"}]
    owed = sum(unit.cost_tokens for unit in plan.units)
    foreseen = forecast(plan, 10, "cpu", rows)
    assert foreseen.device_s == pytest.approx(
        owed * (2.25 + 0.5 + 1.5 + ONE_BATCH_S) / cost_tokens_of(100, [3], is_repeated=False)
    )
    assert (foreseen.num_units, foreseen.device_names) == (1, ("NVIDIA H200",))


def test_a_unit_of_several_contexts_counts_every_prefill_and_equal_parts_of_the_decoding() -> None:
    plan = plan_of(settings_of(), [item(1), item(2)])
    rows = [
        row(variant, 0.5, item_id=f"i{n}", cluster_id=f"c{n}", context_tokens=100 + n)
        for n in range(3)
        for variant in ("a", "b")
    ]
    pace = (
        3
        * (2.25 + 2 * 0.5 + ONE_BATCH_S)
        / sum(cost_tokens_of(100 + n, [3], is_repeated=False) for n in range(3))
    )
    foreseen = forecast(plan, 10, "cpu", rows)
    assert foreseen.device_s == pytest.approx(sum(unit.cost_tokens for unit in plan.units) * pace)


def test_units_with_a_second_pass_set_the_pace_by_what_they_cost() -> None:
    plan = plan_of(settings_of(), [item(1)])
    owed = sum(unit.cost_tokens for unit in plan.units)
    seconds = {**SECONDS, "compress_s": 0.5, "repeat_shared_s": 3.0}
    foreseen = forecast(plan, 10, "cpu", [{**row("kvzip", 0), "seconds": json.dumps(seconds)}])
    cost = cost_tokens_of(100, [3], is_repeated=True)
    assert cost == cost_tokens_of(250, [3], is_repeated=False)
    assert foreseen.device_s == pytest.approx(owed * (2.25 + 0.5 + 3 + ONE_BATCH_S) / cost)


def test_a_second_pass_is_foreseen_where_a_policy_reads_one() -> None:
    policies = [{"name": name, "budget": 0.5, "label": name} for name in ("knorm", "kvzip")]
    items = [item(1), item(2)]
    with_pass, without = (plan_of(settings_of(chosen), items) for chosen in (policies, policies[:1]))
    num_tokens = len(with_pass.units[0].items[0].tokens.context_ids)
    assert [unit.cost_tokens for unit in with_pass.units] == [
        unit.cost_tokens + 1.5 * num_tokens for unit in without.units
    ]
    # A unit that owes none of its rows runs no second pass.
    done = [it.key.identity for it in with_pass.rows if it.key.label == "kvzip"]
    rest = plan_of(settings_of(policies), items, done)
    assert [unit.cost_tokens for unit in rest.units] == [unit.cost_tokens for unit in without.units]


def test_without_rows_twice_the_parameters_take_twice_as_long() -> None:
    plan = plan_of(settings_of(), [item(1)])
    small, large = (forecast(plan, count, "cuda:0", []) for count in (10**9, 2 * 10**9))
    assert large.device_s == pytest.approx(2 * small.device_s)
    assert (large.num_units, large.num_parameters) == (0, 2 * 10**9)
    assert forecast(plan, 10**9, "cpu", []).device_s > small.device_s


def test_nothing_owed_takes_no_time() -> None:
    settings, items = settings_of(), [item(1)]
    done = [planned.key.identity for planned in plan_of(settings, items).rows]
    assert forecast(plan_of(settings, items, done), 10**9, "cpu", []).device_s == 0
