"""Whole runs with policies that act while they answer: what rows report, what is refused, what a broken rule costs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch

from kvmerger.budget import BudgetError
from kvmerger.building import build, build_variant
from kvmerger.contract.case import Case
from kvmerger.decoding.decode_rule import DecodeRule
from kvmerger.engine import Engine
from kvmerger.generation import Generation, VariantFailure
from kvmerger.policies import registry
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.decoding.streaming_llm_decode import OldestLeaves
from kvmerger.policies.ranking.knorm import Knorm
from kvmerger.variants import parse_policies
from tests.fakes.tiny_models import tiny_model
from tests.kvmerger.decoding.test_acting_rows import (
    BUCKET,
    NUM_LAYERS,
    NUM_NEW_TOKENS,
    NUM_TOKENS,
    POLICIES,
    TAILS,
    make_prompt,
)

NUM_HEADS = 2


def built(*entries: dict):
    return [build_variant(spec) for spec in parse_policies(list(entries))]


def by_key(results) -> dict[tuple[str, int], Generation]:
    assert all(isinstance(result, Generation) for result in results), results
    return {(result.label, result.question_index): result for result in results}


def test_rows_report_constant_memory_and_what_left(seed: int) -> None:
    results = by_key(
        Engine(tiny_model(seed, num_layers=NUM_LAYERS).ours).run(make_prompt(seed), built(*POLICIES))
    )
    for (label, question), row in results.items():
        if label in ("full", "full_aa", "no_context"):
            assert "num_decode_evicted" not in row.counters
            continue
        num_steps = NUM_NEW_TOKENS - 1
        assert row.counters["num_decode_evicted"] == num_steps * NUM_LAYERS * NUM_HEADS
        kept = sum(map(sum, row.slots_LH))
        assert row.counters["num_decode_slots"] == kept + NUM_LAYERS * NUM_HEADS * TAILS[question]
        assert row.counters["is_prompt_streamed"] == 0.0
        assert kept == row.asked_slots
        decoding = [point for point in row.trace if point.phase == "decode"]
        assert len(decoding) == NUM_NEW_TOKENS
        assert len({point.live_bytes for point in decoding}) == 1, "one in, one out"
        assert all(point.reserved_bytes >= point.live_bytes + row.kv_bytes for point in decoding)
        # Inside a CUDA graph rules cannot be timed apart.
        assert row.seconds.get("decode_rules_shared_s", 0.0) <= row.seconds["decode_shared_s"]
        merged = row.counters["num_decode_merged"]
        assert merged <= row.counters["num_decode_evicted"]
        assert (merged > 0) == label.startswith("cam")


def test_isolated_runs_agree_with_fused_ones_and_draw_the_same(seed: int) -> None:
    prompt = make_prompt(seed)
    engine = Engine(tiny_model(seed, num_layers=NUM_LAYERS).ours)
    fused, isolated = (
        by_key(engine.run(prompt, built(*POLICIES), execution=execution, seed=3))
        for execution in ("fused", "isolated")
    )
    assert fused.keys() == isolated.keys()
    for key, row in fused.items():
        assert row.token_ids == isolated[key].token_ids
        assert row.slots_LH == isolated[key].slots_LH
        assert row.answer_nll == pytest.approx(isolated[key].answer_nll, abs=1e-3)
        assert row.kl_mean == pytest.approx(isolated[key].kl_mean, abs=1e-3)
        assert row.counters == isolated[key].counters
        live, live_alone = ([point.live_bytes for point in it.trace] for it in (row, isolated[key]))
        assert live == live_alone


def test_another_seed_draws_otherwise(seed: int) -> None:
    engine = Engine(tiny_model(seed, num_layers=NUM_LAYERS).ours)
    entries = [
        {"name": "cam", "budget": 0.6, "num_heirs": 4, "seed": repeat, "label": f"{repeat}"}
        for repeat in range(6)
    ]
    merged = {
        (row.label, row.question_index): row.counters["num_decode_merged"]
        for row in engine.run(make_prompt(seed), built(*entries))
        if isinstance(row, Generation) and row.label.isdigit()
    }
    assert len(set(merged.values())) > 1
    assert all(merged[label, 0] > 0 for label, _ in merged)


def test_groups_report_what_one_batch_does(seed: int) -> None:
    from kvmerger.limits import Limits

    prompt, model = make_prompt(seed), tiny_model(seed, num_layers=NUM_LAYERS)
    whole = by_key(Engine(model.ours).run(prompt, built(*POLICIES)))
    grouped = by_key(Engine(model.ours, Limits(max_rows=BUCKET // 4)).run(prompt, built(*POLICIES)))
    for key, row in whole.items():
        assert row.answer_nll == pytest.approx(grouped[key].answer_nll, abs=1e-3)


def test_like_budgets_are_slots_at_the_end_of_the_prompt(seed: int) -> None:
    entries = (
        {"name": "snapkv+adakv+h2o_decode", "budget": 24, "recent": 4, "window_size": 4, "label": "own"},
        {"name": "knorm", "budget": {"like": "own"}, "label": "plain"},
        {"name": "knorm+h2o_decode", "budget": {"like": "own"}, "recent": 4, "label": "acting"},
        {"name": "knorm+h2o_decode", "budget": {"like": "own"}, "recent": 40, "label": "too_many"},
    )
    engine = Engine(tiny_model(seed, num_layers=NUM_LAYERS).ours)
    results = {row.label: row for row in engine.run(make_prompt(seed), built(*entries))}
    assert results["plain"].slots_LH == results["acting"].slots_LH == results["own"].slots_LH
    refused = results["too_many"]
    assert isinstance(refused, VariantFailure)
    assert (refused.phase, refused.error_type) == ("compress", "BudgetError")


def test_a_policy_that_keeps_everything_is_degenerate_only_if_nothing_ever_leaves(seed: int) -> None:
    entries = (
        {"name": "streaming_llm_decode", "budget": 1.0, "label": "acts"},
        {"name": "streaming_llm_decode", "budget": 1.0, "room": 500, "label": "never"},
    )
    engine = Engine(tiny_model(seed, num_layers=NUM_LAYERS).ours)
    results = {row.label: row for row in engine.run(make_prompt(seed), built(*entries))}
    assert results["acts"].degenerate_reason is None
    assert results["never"].is_degenerate
    # The same slots, but its tokens were forced one by one and the full row's at once: equal but for rounding.
    assert results["never"].kl_mean < 1e-6


@dataclass(frozen=True)
class BreaksAtStepTwo(OldestLeaves):
    def worth(self, step):
        if int(step.num_read) == 2:
            raise RuntimeError("this rule is broken")
        return super().worth(step)


@dataclass(frozen=True)
class Breaking(Policy):
    def compress(self, layer, evidence, budget):
        return layer

    def decode_rule(self, prompt_seed: int) -> DecodeRule:
        return BreaksAtStepTwo(4)


def test_a_strangers_broken_rule_costs_its_own_rows_only(seed: int) -> None:
    good = {"name": "h2o_decode", "budget": 0.5, "recent": 4, "label": "good"}
    bad = {"name": f"{__name__}:Breaking", "budget": 0.5, "label": "bad"}
    prompt, engine = make_prompt(seed), Engine(tiny_model(seed, num_layers=NUM_LAYERS).ours)
    results = {(row.label, row.question_index): row for row in engine.run(prompt, built(good, bad))}
    for question in range(len(prompt.questions)):
        failure = results["bad", question]
        assert isinstance(failure, VariantFailure)
        assert (failure.phase, failure.error_type) == ("decode", "RuntimeError")
        assert "worth" in failure.traceback
    alone = by_key(engine.run(prompt, built(good)))
    for question in range(len(prompt.questions)):
        assert results["good", question].token_ids == alone["good", question].token_ids


@pytest.mark.parametrize(
    ("name", "params", "budget", "message"),
    [
        (
            "streaming_llm+cam",
            {},
            30,
            r"36 slots per head \(num_heirs=32 beside sinks=4\), and the budget leaves 30",
        ),
        ("streaming_llm+cam", {"evict": "h2o", "recent": 40}, 39, "40 slots per head"),
        ("knorm+h2o_decode", {"recent": 21}, 20, "recent=21"),
        ("knorm+streaming_llm_decode", {"sinks": 20}, 20, "sinks=20 and one that can leave"),
    ],
)
def test_budgets_that_leave_nothing_to_choose_are_refused_before_the_run(
    name: str, params: dict, budget: int, message: str
) -> None:
    shape = CacheShape(NUM_TOKENS, NUM_LAYERS, NUM_HEADS)
    variant = build_variant(parse_policies([{"name": name, "budget": budget, **params}])[0])
    with pytest.raises(BudgetError, match=message):
        variant.policy.check(shape, variant.budget)


@pytest.mark.parametrize(
    "name",
    ["knorm", "snapkv+adakv", "snapkv+criticalkv", "kvzip", "pyramidkv", "knorm+d2o", "snapkv+adakv+int4"],
)
def test_one_choice_for_all_heads_is_refused_behind_what_keeps_other_tokens_in_some_heads(name: str) -> None:
    with pytest.raises(PolicyError) as caught:
        build(f"{name}+tova_decode", {})
    assert f"one choice for all heads of a layer, and {name} keeps" in str(caught.value)
    assert "put a policy in front that does not, such as tova" in str(caught.value)


@dataclass(frozen=True)
class SaysThatHeadsAgree(Knorm):
    """And is wrong."""

    heads_agree = True


def test_who_says_wrongly_that_heads_agree_has_failed_rows(seed: int) -> None:
    engine = Engine(tiny_model(seed, num_layers=NUM_LAYERS).ours)
    name = f"{__name__}:SaysThatHeadsAgree"
    variant = built({"name": f"{name}+tova_decode", "budget": 0.5, "label": "apart"})
    failure = next(row for row in engine.run(make_prompt(seed), variant) if row.label == "apart")
    assert isinstance(failure, VariantFailure)
    assert f"one choice for all heads of a layer, and {name} at this budget keeps" in failure.message


def test_heads_agree_where_a_policy_says_so(seed: int) -> None:
    wrapped = [
        f"{ranking}+{it}"
        for it in registry.wrapper_names()
        for ranking in ("snapkv", "streaming_llm", "tova")
    ]
    said = []
    for name in (*registry.names(), *wrapped):
        with suppress(PolicyError):
            if not build(name, {}).heads_agree:
                continue
            said.append(name)
            for layer in Case(name, seed, torch.float32).compressed():
                assert layer.is_uniform and bool((layer.position_HS == layer.position_HS[:1]).all()), name
    assert {"tova", "streaming_llm", "snapkv+chunkkv", "snapkv+blocks16", "tova+nearest"} <= set(said)
    assert not {"knorm", "snapkv+adakv", "tova+adakv", "tova+criticalkv"} & set(said)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("knorm+cam", {"evict": "oldest"}, "evict must be one of"),
        ("knorm+cam", {"num_heirs": 0}, "num_heirs must be a whole number from 1"),
        ("knorm+cam", {"seed": 0.5}, "seed"),
        ("knorm+h2o_decode", {"room": -1}, "room must be a whole number from 0"),
        ("knorm+h2o_decode+cam", {}, "acts during decoding already"),
        ("knorm+h2o_decode+adakv", {}, "ranks tokens"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(name: str, params: dict, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        build(name, params)


def test_a_methods_own_name_is_the_method_and_its_rule() -> None:
    specs = parse_policies([{"name": name, "budget": 0.5} for name in ("cam", "h2o_decode", "tova_decode")])
    assert [spec.policy for spec in specs] == ["streaming_llm+cam", "h2o+h2o_decode", "tova+tova_decode"]
    assert [spec.label for spec in specs] == ["cam@0.5", "h2o_decode@0.5", "tova_decode@0.5"]
