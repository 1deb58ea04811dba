"""Whole runs: every variant comes back once, fused or isolated, and a failing one takes nobody with it."""

import gc
import time
from dataclasses import dataclass, replace

import pytest
from torch import Tensor

from kvmerger.building import build_variant
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.engine import Engine
from kvmerger.generation import Generation, InvalidPromptError, Prompt, Question, VariantFailure
from kvmerger.limits import Limits
from kvmerger.names import VariantError
from kvmerger.policies.base import Policy
from kvmerger.policies.selection import keep_highest
from kvmerger.prefill.evidence import LayerStates, Need, register_evidence
from kvmerger.variants import parse_policies
from tests.fakes.tiny_models import VOCAB_SIZE, tiny_model
from tests.kvmerger.engine.test_engine import NUM_NEW_TOKENS, make_prompt, variants


def built(*entries: dict):
    return [build_variant(spec) for spec in parse_policies(list(entries))]


def test_a_like_budget_has_the_same_slots_in_every_layer_and_head(seed: int) -> None:
    prompt = make_prompt(seed, 300, "query_aware")
    results = {g.label: g for g in Engine(tiny_model(seed).ours).run(prompt, list(reversed(variants())))}
    assert results["random_ragged"].slots_LH == results["ragged"].slots_LH
    assert len({slots for layer in results["ragged"].slots_LH for slots in layer}) > 2


def test_reference_rows_bound_the_scale(seed: int) -> None:
    prompt = make_prompt(seed, 300, "query_agnostic", num_questions=1)
    by_label = {g.label: g for g in Engine(tiny_model(seed).ours).run(prompt, variants())}
    assert by_label["full"].kl_mean == 0.0
    assert by_label["full"].top1_agreement == 1.0
    assert by_label["full_aa"].kl_mean < 1e-6
    assert by_label["no_context"].kl_mean > by_label["full_aa"].kl_mean
    assert by_label["no_context"].kv_bytes == 0
    assert all(by_label[variant.label].num_fidelity_tokens == NUM_NEW_TOKENS for variant in variants())


def test_isolated_runs_agree_with_fused_ones(seed: int) -> None:
    prompt = make_prompt(seed, 300, "query_agnostic")
    engine = Engine(tiny_model(seed).ours)
    fused, isolated = (
        {(g.label, g.question_index): g for g in engine.run(prompt, variants(), execution=execution)}
        for execution in ("fused", "isolated")
    )
    assert fused.keys() == isolated.keys()
    for key, generation in fused.items():
        assert generation.slots_LH == isolated[key].slots_LH
        assert generation.kv_bytes == isolated[key].kv_bytes
        assert generation.kl_mean == pytest.approx(isolated[key].kl_mean, abs=1e-3)
        assert generation.answer_nll == pytest.approx(isolated[key].answer_nll, abs=1e-3)


def test_groups_of_rows_report_every_variant_once(seed: int) -> None:
    prompt = make_prompt(seed, 300, "query_agnostic")
    model = tiny_model(seed)
    whole = Engine(model.ours).run(prompt, variants())
    grouped = Engine(model.ours, Limits(max_rows=6)).run(prompt, variants())
    assert sorted((g.label, g.question_index) for g in whole) == sorted(
        (g.label, g.question_index) for g in grouped
    )
    by_key = {(g.label, g.question_index): g for g in grouped}
    for generation in whole:
        assert generation.kl_mean == pytest.approx(
            by_key[generation.label, generation.question_index].kl_mean, abs=1e-3
        )


def test_a_failing_variant_takes_nobody_with_it(seed: int) -> None:
    specs = parse_policies(
        [
            {"name": "snapkv", "budget": 10, "label": "impossible"},
            {"name": "random", "budget": {"like": "impossible"}, "label": "orphan"},
            {"name": "knorm", "budget": 0.5},
        ]
    )
    prompt = make_prompt(seed, 300, "query_aware", num_questions=1)
    results = {
        r.label: r for r in Engine(tiny_model(seed).ours).run(prompt, [build_variant(spec) for spec in specs])
    }
    assert isinstance(results["knorm@0.5"], Generation)
    failure = results["impossible"]
    assert isinstance(failure, VariantFailure)
    assert (failure.phase, failure.error_type) == ("compress", "BudgetError")
    assert "window_size" in failure.message
    assert isinstance(results["orphan"], VariantFailure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_ids": ()}, "compressed part of the prompt is empty"),
        ({"questions": ()}, "no question"),
        ({"questions": (Question((), (), 4),)}, "empty tail"),
        ({"questions": (Question((1,), (), 0),)}, "0 new tokens"),
        ({"questions": (Question((1,), (), 5000),)}, "positions"),
        ({"context_ids": (VOCAB_SIZE,)}, "vocabulary"),
    ],
)
def test_bad_prompts_are_refused_with_the_reason(change: dict, message: str, seed: int) -> None:
    prompt = Prompt(**{"context_ids": (1, 2, 3), "questions": (Question((1,), (2,), 4),), **change})
    with pytest.raises(InvalidPromptError, match=message):
        Engine(tiny_model(seed).ours).run(prompt, [])


def test_clashing_labels_are_refused(seed: int) -> None:
    prompt = make_prompt(seed, 300, "query_aware")
    with pytest.raises(VariantError, match="unique"):
        Engine(tiny_model(seed).ours).run(prompt, variants() + variants()[:1])


def test_like_budgets_in_a_circle_are_refused(seed: int) -> None:
    """A sweep's settings refuse them earlier; the engine must not loop either."""
    a, b = built(
        {"name": "knorm", "budget": {"like": "full"}, "label": "a"},
        {"name": "knorm", "budget": 9, "label": "b"},
    )
    a = replace(a, budget=replace(a.budget, label="b"))
    b = replace(b, budget=replace(a.budget, label="a"))
    for execution in ("fused", "isolated"):
        with pytest.raises(VariantError, match="circle"):
            Engine(tiny_model(seed).ours).run(
                make_prompt(seed, 300, "query_aware"), [a, b], execution=execution
            )


BROKEN_EVIDENCE = Need("test_broken_evidence")


@register_evidence(BROKEN_EVIDENCE.name, reads_queries=True)
def broken_evidence(states: LayerStates) -> Tensor:
    raise RuntimeError("this evidence is broken")


@dataclass(frozen=True)
class ReadsBrokenEvidence(Policy):
    def needs(self):
        return frozenset({BROKEN_EVIDENCE})

    def compress(self, layer, evidence, budget):
        return keep_highest(layer, evidence.get(BROKEN_EVIDENCE), budget)


@dataclass(frozen=True)
class NamesUnknownEvidence(Policy):
    def needs(self):
        return frozenset({Need("atention_mass")})

    def compress(self, layer, evidence, budget):
        return keep_highest(layer, evidence.get(Need("atention_mass")), budget)


@dataclass(frozen=True)
class DropsAHead(Policy):
    def compress(self, layer, evidence, budget):
        num_slots = layer.num_slots_H[0]
        return LayerCache(
            layer.k_SD[:num_slots], layer.v_SD[:num_slots], layer.position_S[:num_slots], (num_slots,)
        )


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("ReadsBrokenEvidence", "this evidence is broken"),
        ("NamesUnknownEvidence", "no evidence is registered as 'atention_mass'"),
        ("DropsAHead", "the uncompressed layer has"),
    ],
)
def test_a_strangers_mistake_costs_its_own_rows_only(policy: str, message: str, seed: int) -> None:
    entries = (
        {"name": f"{__name__}:{policy}", "budget": 0.5, "label": "bad"},
        {"name": "knorm", "budget": 0.5},
    )
    prompt = make_prompt(seed, 300, "query_aware", num_questions=1)
    results = {r.label: r for r in Engine(tiny_model(seed).ours).run(prompt, built(*entries))}
    assert isinstance(results["bad"], VariantFailure)
    assert message in results["bad"].message
    assert all(isinstance(result, Generation) for label, result in results.items() if label != "bad")


def test_what_was_asked_stands_beside_what_was_kept(seed: int) -> None:
    entries = (
        {"name": "kvmerger", "budget": 0.7},
        {
            "name": "kvmerger",
            "budget": 0.5,
            "mode": "threshold",
            "eps": 1.0,
            "skip_layers": [],
            "label": "too_much",
        },
    )
    prompt = make_prompt(seed, 300, "query_aware", num_questions=1)
    results = {g.label: g for g in Engine(tiny_model(seed).ours).run(prompt, built(*entries))}
    # 5 layers of 2 heads; the two variants ask for 210 and 150 of 300 slots.
    assert (results["kvmerger@0.7"].asked_slots, results["too_much"].asked_slots) == (2100, 1500)
    assert results["kvmerger@0.7"].counters["is_budget_reached"] == 1.0
    assert results["too_much"].counters["is_budget_reached"] == 0.0
    assert results["too_much"].is_degenerate
    assert results["full"].asked_slots is None


def test_a_variant_like_another_merges_to_the_same_slots(seed: int) -> None:
    entries = (
        {"name": "kvmerger", "budget": 0.7, "label": "own"},
        {"name": "kvmerger", "budget": {"like": "own"}, "sigma": 5, "label": "same"},
    )
    prompt = make_prompt(seed, 300, "query_aware", num_questions=1)
    results = {g.label: g for g in Engine(tiny_model(seed).ours).run(prompt, built(*entries))}
    assert results["same"].slots_LH == results["own"].slots_LH
    assert results["same"].counters["protected_ratio"] == results["own"].counters["protected_ratio"]


def test_padding_of_a_short_question_is_no_position_of_its_own(seed: int) -> None:
    """Within its window of 64 each question runs; the width of the longer one must not push the other beyond it."""
    model = tiny_model(seed, model_type="mistral")
    model.ours.module.config.sliding_window = 64
    for module in model.ours.attention_modules:
        module.sliding_window = 64
    context, tail = tuple(range(20)), tuple(range(40))
    prompt = Prompt(context, (Question(tail, (), 2), Question(tail[:2], (), 38)))
    results = Engine(model.ours).run(prompt, built({"name": "knorm", "budget": 0.5}))
    assert all(isinstance(result, Generation) for result in results)


@pytest.mark.parametrize("limits", [{"max_rows": 0}, {"max_fidelity_tokens": 0}])
def test_limits_that_leave_nothing_are_refused(limits: dict) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Limits(**limits)


def test_a_run_leaves_no_tensor_to_the_garbage_collector(seed: int) -> None:
    """What only the collector frees may stay for many prompts, K/V of all layers among it."""
    engine, prompt = Engine(tiny_model(seed).ours), make_prompt(seed, 120, "query_agnostic")
    # An error's frames hold whatever was alive where it was raised.
    chosen = [*variants(), *built({"name": "snapkv", "budget": 10, "label": "impossible"})]
    engine.run(prompt, chosen)  # what is made once
    gc.collect()
    gc.disable()
    try:
        before = _num_tensors()
        results = engine.run(prompt, chosen)
        assert _num_tensors() == before
    finally:
        gc.enable()
    assert len(results) > len(chosen)
    assert any(isinstance(result, VariantFailure) and result.label == "impossible" for result in results)


PROMPT_PHASES = ("prefill_shared_s", "plan_shared_s")
BATCH_PHASES = (
    "batch_shared_s", "tails_shared_s", "decode_shared_s", "fidelity_shared_s", "results_shared_s",
)  # fmt: skip


def test_every_row_has_all_phases_and_they_do_not_overlap(seed: int) -> None:
    engine, prompt = Engine(tiny_model(seed).ours), make_prompt(seed, 120, "query_agnostic")
    start_s = time.perf_counter()
    rows = engine.run(prompt, variants())
    wall_s = time.perf_counter() - start_s
    assert all(row.seconds.keys() == {*PROMPT_PHASES, *BATCH_PHASES, "compress_s"} for row in rows)
    full, full_aa = (next(row.seconds for row in rows if row.label == label) for label in ("full", "full_aa"))
    each = {row.label: row.seconds["compress_s"] for row in rows}
    # The A/A row has a batch of its own, on the same prefill.
    spent_s = [full[name] for name in PROMPT_PHASES] + [
        it[name] for it in (full, full_aa) for name in BATCH_PHASES
    ]
    assert min(spent_s) >= 0
    assert sum(spent_s) + sum(each.values()) <= wall_s


def _num_tensors() -> int:
    return sum(issubclass(type(held), Tensor) for held in gc.get_objects())
