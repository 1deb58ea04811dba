"""KVMerger against loops over single tokens in float64, written from the algorithm's description, on planted runs."""

from dataclasses import replace

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio, LikeVariant, SlotCount
from kvmerger.building import build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.names import VariantError
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.mergers.kvmerger import KVMerger
from kvmerger.policies.mergers.kvmerger_paper import KVMergerPaper
from kvmerger.policies.mergers.kvmerger_plus import KVMergerPlus
from kvmerger.policies.mergers.pivots_only import PivotsOnly
from kvmerger.policies.mergers.protected_mass import ProtectedMass
from kvmerger.policies.mergers.zeromerge import ZeroMerge
from kvmerger.prefill.evidence import Evidence, LayerStates
from tests.fakes.planted_layers import (
    HEAD_DIM,
    NUM_HEADS,
    NUM_QUERY_HEADS,
    NUM_TOKENS,
    assert_slots,
    planted_states,
    slow_masses,
)
from tests.slow.kvmerger import slow_kvmerger, slow_zeromerge

OPTIONS = [
    {},
    {"sigma": 5.0},
    {"value_factor": "count"},
    {"merge_keys": False},
    {"merge_values": False},
    {"layout": "shared"},
    {"layout": "all_agree"},
    {"log_mass": "count"},
    {"log_mass": "attention"},
    {"log_mass": "attention", "max_log_mass": 0.7, "merge_keys": False, "merge_values": False},
    {"weights": "mean"},
    {"weights": "attention"},
    {"weights": "gaussian_attention", "sigma": 3.0},
    {"pivot": "random", "seed": 3},
    {"pivot": "random", "layout": "shared", "weights": "attention"},
    {"attention_source": "window", "window_size": 8},
    {"recent_ratio": 0.3, "heavy_ratio": 0.0},
]
RANKED_LINKS = [
    {"links": "random"},
    {"links": "random", "layout": "shared", "pivot": "random"},
    {"links": "low_mass"},
    {"links": "cosine_low_mass", "weights": "gaussian_attention"},
    {"links": "cosine_low_mass", "layout": "shared"},
]


def evidence_of(policy: Policy, states: LayerStates, prompt_seed: int = 0) -> Evidence:
    evidence = Evidence(states, layer_index=3, num_layers=8, prompt_seed=prompt_seed)
    evidence.capture(policy.needs())
    return evidence


def compress(policy: Policy, states: LayerStates, budget: Budget, prompt_seed: int = 0) -> LayerCache:
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    return policy.compress(layer, evidence_of(policy, states, prompt_seed), budget)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"mode": mode, **options} for options in OPTIONS for mode in ("exact", "threshold")] + RANKED_LINKS,
    ids=str,
)
def test_equals_loops_over_tokens(options: dict, dtype: torch.dtype, seed: int) -> None:
    policy = KVMerger(eps=0.6, **options)
    states = planted_states(seed, dtype)
    is_ragged = policy.layout == "per_head"
    budget = Budget((NUM_TOKENS // 2 - 5 if is_ragged else NUM_TOKENS // 2, NUM_TOKENS // 2), 0.5)
    evidence = evidence_of(policy, states)
    merged = policy.compress(LayerCache.from_dense(states.k_HND, states.v_HND), evidence, budget)
    expected = slow_kvmerger(policy, states, evidence, budget)
    assert merged.num_slots_H == tuple(len(slots) for slots in expected)
    assert policy.mode == "threshold" or merged.num_slots_H == budget.num_slots_H
    assert any(len(slots) < NUM_TOKENS for slots in expected), "nothing was merged"
    slots = [slot for head in expected for slot in head]
    assert_slots(merged, slots, dtype, has_log_mass=policy.log_mass != "none")


def test_kvmerger_plus_leaves_keys_alone_and_answers_for_its_members(seed: int) -> None:
    states, budget = planted_states(seed, torch.float32), Budget.uniform(44, NUM_HEADS, 0.5)
    plus, pivots = (compress(policy, states, budget) for policy in (KVMergerPlus(), PivotsOnly()))
    assert torch.equal(plus.k_SD, pivots.k_SD) and torch.equal(plus.position_S, pivots.position_S)
    expected = slow_kvmerger(KVMergerPlus(), states, evidence_of(KVMergerPlus(), states), budget)
    slots = [slot for head in expected for slot in head]
    assert_slots(plus, slots, torch.float32, has_log_mass=True)
    assert plus.log_mass_S is not None
    assert 0 < plus.log_mass_S.max() <= 3.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"links": "random"},
        {"pivot": "random"},
        {"layout": "shared"},
        {"mode": "threshold", "eps": 0.6},
    ],
    ids=str,
)
def test_pivots_only_has_kvmergers_slots_with_nothing_merged(options: dict, seed: int) -> None:
    states, budget = planted_states(seed, torch.bfloat16), Budget.uniform(44, NUM_HEADS, 0.5)
    merged = compress(KVMerger(**options), states, budget)
    kept = compress(PivotsOnly(**options), states, budget)
    assert merged.num_slots_H == kept.num_slots_H
    assert torch.equal(merged.position_S, kept.position_S)
    head_S = torch.repeat_interleave(torch.arange(NUM_HEADS), torch.tensor(kept.num_slots_H))
    assert torch.equal(kept.k_SD, states.k_HND[head_S, kept.position_S])
    assert torch.equal(kept.v_SD, states.v_HND[head_S, kept.position_S])
    assert not torch.equal(merged.v_SD, kept.v_SD)
    assert kept.counters["num_evicted"] == merged.counters["num_merged"] > 0
    assert kept.counters["num_merged"] == merged.counters["num_evicted"] == 0
    assert (kept.counters["is_pure_eviction"], merged.counters["is_pure_eviction"]) == (1.0, 0.0)


def test_protected_mass_keeps_the_protected_tokens_and_the_most_attended(seed: int) -> None:
    states, budget = planted_states(seed, torch.float32), Budget((40, 51), 0.4)
    policy = ProtectedMass()
    kept = compress(policy, states, budget)
    num_recent = int(policy._protected(0.4).recent_ratio * NUM_TOKENS)
    for mass, positions, num_slots in zip(
        slow_masses(states, None), kept.position_S.split(kept.num_slots_H), budget.num_slots_H, strict=True
    ):
        first_recent = NUM_TOKENS - num_recent
        others = sorted(range(first_recent), key=lambda t, mass=mass: -mass[t])[: num_slots - num_recent]
        assert positions.tolist() == sorted([*others, *range(first_recent, NUM_TOKENS)])


@pytest.mark.parametrize(("num_layers", "ratio"), [(8, 0.7), (30, 0.35)])
def test_controls_get_kvmergers_budgets(num_layers: int, ratio: float) -> None:
    states = planted_states(0, torch.float32)
    evidence_L = [Evidence(states, index, num_layers, 0) for index in range(num_layers)]
    even = [Budget.uniform(int(ratio * NUM_TOKENS), NUM_HEADS, ratio)] * num_layers
    expected = KVMerger().allocate(even, evidence_L)
    assert PivotsOnly().allocate(even, evidence_L) == expected
    assert ProtectedMass().allocate(even, evidence_L) == expected


def test_random_links_and_pivots_depend_on_the_prompt_and_the_seed_alone(seed: int) -> None:
    states, budget = planted_states(seed, torch.float32), Budget.uniform(44, NUM_HEADS, 0.5)
    for name in ("links", "pivot"):
        policy = KVMerger(**{name: "random"})
        first = compress(policy, states, budget).position_S.tolist()
        assert compress(policy, states, budget).position_S.tolist() == first
        assert compress(replace(policy, seed=1), states, budget).position_S.tolist() != first
        assert compress(policy, states, budget, prompt_seed=1).position_S.tolist() != first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("tail_ratio", "num_residual", "scale"), [(0.4, 1, 0.6), (0.0, 3, 1.0), (0.8, 7, 0.0)]
)
def test_zeromerge_equals_loops_over_tokens(
    tail_ratio: float, num_residual: int, scale: float, dtype: torch.dtype, seed: int
) -> None:
    states, budget = planted_states(seed, dtype), Budget((37, NUM_TOKENS), 0.5)
    merged = compress(ZeroMerge(tail_ratio, num_residual, scale), states, budget)
    assert merged.num_slots_H == budget.num_slots_H
    expected = slow_zeromerge(states, budget, tail_ratio, num_residual, scale)
    assert_slots(merged, [slot for head in expected for slot in head], dtype, has_log_mass=True)
    assert merged.counters["num_merged"] == NUM_TOKENS - 37


def test_threshold_mode_leaves_heads_of_different_length(seed: int) -> None:
    merged = compress(
        KVMerger(mode="threshold", eps=0.6), planted_states(seed, torch.float32), Budget.uniform(48, 2, 0.5)
    )
    assert not merged.is_uniform
    merged.check_integrity()
    assert merged.counters["num_merged"] == NUM_HEADS * NUM_TOKENS - merged.num_slots
    assert merged.counters["mean_link_cosine"] > 0.6


def test_single_tokens_pass_through_bit_for_bit(seed: int) -> None:
    states = planted_states(seed, torch.bfloat16)
    merged = compress(KVMerger(mode="threshold", eps=1.0), states, Budget.uniform(48, 2, 0.5))
    assert torch.equal(merged.k_SD.view(2, NUM_TOKENS, -1), states.k_HND)
    assert torch.equal(merged.v_SD.view(2, NUM_TOKENS, -1), states.v_HND)
    assert merged.counters["num_merged"] == 0


def test_equal_keys_merge_into_themselves() -> None:
    k_HND = torch.ones(NUM_HEADS, NUM_TOKENS, HEAD_DIM)
    v_HND = torch.randn(NUM_HEADS, NUM_TOKENS, HEAD_DIM)
    states = LayerStates(torch.ones(NUM_QUERY_HEADS, NUM_TOKENS, HEAD_DIM), k_HND, v_HND, 0.3)
    merged = compress(KVMerger(mode="threshold", eps=0.9), states, Budget.uniform(48, 2, 0.5))
    torch.testing.assert_close(merged.k_SD, torch.ones_like(merged.k_SD))
    assert bool(merged.v_SD.isfinite().all())


@pytest.mark.parametrize(("num_layers", "ratio"), [(5, 0.7), (16, 0.5), (30, 0.5), (30, 0.35), (80, 0.2)])
def test_exact_mode_meets_the_budget_over_the_whole_model(num_layers: int, ratio: float) -> None:
    policy = KVMerger()
    states = planted_states(0, torch.float32)
    evidence_L = [Evidence(states, index, num_layers, 0) for index in range(num_layers)]
    even = Budget.uniform(int(ratio * NUM_TOKENS), NUM_HEADS, ratio)
    budgets = policy.allocate([even] * num_layers, evidence_L)
    assert [budgets[index].num_slots_H[0] for index in (0, 1, -1)] == [NUM_TOKENS] * 3
    total = sum(budget.num_slots for budget in budgets)
    allowed = even.num_slots * num_layers
    assert allowed - NUM_HEADS * num_layers < total <= allowed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "soft"}, "mode"),
        ({"eps": -1.0}, "eps"),
        ({"eps": 1.5}, "eps"),
        ({"sigma": 0.0}, "sigma"),
        ({"value_factor": "count", "log_mass": "count"}, "both count"),
        ({"recent_ratio": 1.2}, "recent_ratio"),
        ({"layout": "none"}, "layout"),
        ({"links": "nearest"}, "links"),
        ({"links": "random", "mode": "threshold"}, "mode=exact"),
        ({"pivot": "first"}, "pivot"),
        ({"weights": "max"}, "weights"),
        ({"max_log_mass": 0}, "max_log_mass must be positive"),
        ({"merge_values": "no"}, "true or false"),
        ({"seed": 0.5}, "seed"),
        ({"window_size": 0}, "window_size"),
        ({"skip_layers": 3}, "skip_layers"),
    ],
)
def test_bad_parameters_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        KVMerger(**options)


def test_pivots_only_cannot_be_told_to_merge() -> None:
    with pytest.raises(VariantError, match="no parameter 'merge_keys'"):
        build("pivots_only", {"merge_keys": True})


@pytest.mark.parametrize("options", [{"tail_ratio": 1.0}, {"num_residual": 0}, {"log_mass_scale": 2}])
def test_bad_zeromerge_parameters_are_refused_by_name(options: dict) -> None:
    with pytest.raises(PolicyError, match=next(iter(options))):
        build("zeromerge", options)


@pytest.mark.parametrize(
    ("policy", "budget", "num_layers", "message"),
    [
        (KVMerger(), KeptRatio(0.1), 30, "skip fewer layers"),
        (KVMerger(), KeptRatio(0.5), 5, "skip fewer layers"),
        (KVMerger(), SlotCount(20), 30, "protect"),
        (KVMerger(skip_layers=(0, 1)), KeptRatio(0.5), 2, "leaves none"),
        (KVMerger(recent_ratio=0.5), KeptRatio(0.5), 30, "protected"),
        (KVMergerPaper(), SlotCount(200), 30, "kept fraction"),
        (KVMergerPaper(), LikeVariant("snapkv"), 30, "kept fraction"),
        (KVMerger(attention_source="window", window_size=2000), KeptRatio(0.5), 30, "window_size"),
        (PivotsOnly(), KeptRatio(0.1), 30, "pivots_only: .*skip fewer layers"),
        (ProtectedMass(), KeptRatio(0.1), 30, "protected_mass: .*skip fewer layers"),
        (ProtectedMass(recent_ratio=0.5), KeptRatio(0.5), 30, "protected"),
        (ZeroMerge(num_residual=8), SlotCount(8), 30, "num_residual=8"),
        (ZeroMerge(tail_ratio=0.9, num_residual=7), SlotCount(37), 30, "tail of 33"),
    ],
)
def test_impossible_budgets_are_refused_before_any_work(
    policy: Policy, budget: KeptRatio | SlotCount, num_layers: int, message: str
) -> None:
    with pytest.raises(BudgetError, match=message):
        policy.check(CacheShape(num_tokens=1000, num_layers=num_layers, num_kv_heads=2), budget)


@pytest.mark.parametrize(("ratio", "recent", "heavy"), [(0.5, 0.17, 0.12), (0.35, 0.08, 0.02)])
def test_the_papers_fractions_are_exact_at_its_two_budgets(ratio: float, recent: float, heavy: float) -> None:
    assert KVMergerPaper()._protected(ratio) == (recent, heavy)
