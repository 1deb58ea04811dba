"""Every reducer against loops over single tokens in float64, on heads that keep different numbers of tokens."""

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio, LikeVariant
from kvmerger.building import Variant, build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.contract.layers import random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.names import VariantError
from kvmerger.policies import registry
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.reducers.base import Reducer
from kvmerger.policies.reducers.fitted import FittedReducer
from kvmerger.policies.reducers.kvslimmer import PairReducer
from kvmerger.policies.reducers.weighted_kv import WeightedKV
from kvmerger.prefill.evidence import Evidence, LayerStates
from kvmerger.variants import FULL
from tests.fakes.planted_layers import NUM_HEADS, NUM_TOKENS, assert_slots, planted_states
from tests.slow.pairs import slow_pair_reducer
from tests.slow.reducers import kept_sets, slow_reduce

CASES = [
    ("compensated", {}),
    ("compensated", {"merge_keys": True, "weights": "mean", "log_mass": "count"}),
    ("compensated", {"attention_source": "window", "mass_window": 8, "max_log_mass": 0.5}),
    ("compensated", {"log_mass": "none", "weights": "gaussian", "sigma": None}),
    ("compensated", {"merge_values": False}),
    ("nearest", {}),
    ("nearest", {"weights": "mean", "min_cosine": 0.6}),
    ("nearest", {"weights": "attention", "merge_keys": True, "min_cosine": -0.99}),
    ("kvmerger", {"eps": 0.6}),
    ("kvmerger", {"eps": 0.5, "layout": "shared", "value_factor": "count", "sigma": 2.0}),
    ("kvmerger", {"eps": 0.6, "merge_keys": False, "weights": "attention", "log_mass": "attention"}),
    ("d2o", {}),
    ("d2o", {"merge_keys": False}),
    ("weighted_kv", {}),
    ("weighted_kv", {"attention_source": "window", "mass_window": 8}),
    ("keepkv", {"min_cosine": 0.6, "score_window": 16}),
    ("keepkv", {"min_cosine": 0.5, "score_window": 16, "keys": "moved"}),
    ("kvslimmer", {"mass_window": 16}),
    ("kvslimmer", {"attention_source": "prefill", "weights": "diagonal", "keys": "after_rope"}),
]
BUDGETS = [Budget((30, 55), 0.4), Budget((NUM_TOKENS, 20), 0.6), Budget((3, 1), 0.02)]
REDUCERS = sorted({name for name, _ in CASES})


def evidence_of(policy: Reducer, states: LayerStates) -> Evidence:
    evidence = Evidence(states, layer_index=3, num_layers=8, prompt_seed=7)
    evidence.capture(policy.needs())
    return evidence


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: str(budget.num_slots_H))
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_equals_loops_over_tokens(
    name: str, options: dict, budget: Budget, dtype: torch.dtype, seed: int
) -> None:
    policy = build(f"random+{name}", options)
    assert isinstance(policy, Reducer)
    states = planted_states(seed, dtype)
    evidence = evidence_of(policy, states)
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    merged = policy.compress(layer, evidence, budget)
    merged.check_integrity()
    assert merged.num_slots_H == budget.num_slots_H
    kept = kept_sets(policy.inner.select(evidence, budget))
    by_pairs = isinstance(policy, PairReducer)
    heads = slow_pair_reducer(policy, states, kept) if by_pairs else slow_reduce(name, policy, states, kept)
    slots = [slot for head in heads for slot in head]
    assert_slots(merged, slots, dtype, has_log_mass=merged.log_mass_S is not None)
    dropped = NUM_HEADS * NUM_TOKENS - budget.num_slots
    assert merged.counters["num_merged"] + merged.counters["num_evicted"] == dropped
    assert merged.counters["num_merged"] > 0 or budget == BUDGETS[2], "nothing was merged"


def test_every_reducer_has_a_reference() -> None:
    shipped = {name for name in registry.wrapper_names() if issubclass(registry.get_wrapper(name), Reducer)}
    # Those that are fitted have theirs in test_fitted.py.
    fitted = {name for name in shipped if issubclass(registry.get_wrapper(name), FittedReducer)}
    assert shipped - fitted == set(REDUCERS)


@pytest.mark.parametrize("name", REDUCERS)
def test_counters_tell_what_was_merged(name: str, seed: int) -> None:
    policy = build(f"random+{name}", {})
    assert isinstance(policy, Reducer)
    states = planted_states(seed, torch.float32)
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    evidence, budget = evidence_of(policy, states), Budget((40, 50), 0.5)
    merged = policy.compress(layer, evidence, budget)
    before = policy.inner.compress(layer, evidence, budget)
    is_changed_S = (merged.v_SD != before.v_SD).any(dim=1)
    assert int(is_changed_S.sum()) == merged.counters["num_merging_sets"]
    assert merged.counters["num_merged"] >= merged.counters["num_merging_sets"]
    assert (merged.counters["num_merged"] == 0) == bool(merged.counters["is_pure_eviction"])
    assert -1 <= merged.counters.get("mean_merge_cosine", 0.0) <= 1.0001


@pytest.mark.parametrize("name", REDUCERS)
def test_a_layer_that_keeps_everything_is_returned_unchanged(name: str, seed: int) -> None:
    policy = build(f"random+{name}", {})
    states = planted_states(seed, torch.float32)
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    evidence = evidence_of(policy, states)
    assert policy.compress(layer, evidence, Budget.uniform(NUM_TOKENS, NUM_HEADS, 1.0)) is layer


def test_nothing_is_merged_where_nothing_is_alike(seed: int) -> None:
    policy = build("random+kvmerger", {"eps": 1.0})
    states = planted_states(seed, torch.float32)
    merged = policy.compress(
        LayerCache.from_dense(states.k_HND, states.v_HND),
        evidence_of(policy, states),
        Budget((40, 50), 0.5),
    )
    assert merged.counters["num_merged"] == 0 and merged.counters["is_pure_eviction"] == 1.0


def test_pairs_lose_no_token(seed: int) -> None:
    policy = build("random+kvslimmer", {"mass_window": 16})
    states = planted_states(seed, torch.float32)
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    merged = policy.compress(layer, evidence_of(policy, states), Budget((30, 5), 0.2))
    length_S = merged.log_mass_S.exp()
    for length_s, v_SD, all_ND in zip(
        length_S.split([30, 5]), merged.v_SD.split([30, 5]), states.v_HND, strict=True
    ):
        assert float(length_s.sum()) == pytest.approx(NUM_TOKENS, rel=1e-5)
        torch.testing.assert_close(length_s @ v_SD, all_ND.sum(dim=0), atol=1e-4, rtol=1e-4)


def test_any_selection_can_stand_in_front(seed: int) -> None:
    states = planted_states(seed, torch.bfloat16)
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    for name, options in (("snapkv+adakv", {"window_size": 8}), ("protected_mass", {}), ("knorm", {})):
        for reducer in REDUCERS:
            policy = build(f"{name}+{reducer}", options)
            assert isinstance(policy, Reducer)
            evidence, budget = evidence_of(policy, states), Budget.uniform(48, NUM_HEADS, 0.5)
            kept = policy.inner.compress(layer, evidence, budget)
            merged = policy.compress(layer, evidence, budget)
            assert merged.num_slots_H == kept.num_slots_H
            assert torch.equal(merged.position_S, kept.position_S)


@pytest.mark.parametrize("name", ["pyramidkv", "snapkv+adakv", "protected_mass"])
def test_reducers_leave_the_sharing_of_slots_to_what_selects(name: str, seed: int) -> None:
    policies = {part: build(part, {}) for part in (name, *(f"{name}+{reducer}" for reducer in REDUCERS))}
    for reducer in REDUCERS:
        policy = policies[f"{name}+{reducer}"]
        prefilled = random_prefill(seed, torch.float32, policy)
        variants = [
            Variant("evicted", policies[name], KeptRatio(0.6)),
            Variant("merged", policy, KeptRatio(0.6)),
            Variant("like", policy, LikeVariant("merged")),
        ]
        # AdaKV and PyramidKV share out budgets of their own, and say so of one that is fixed already.
        compression = compress_all(prefilled, variants if name == "protected_mass" else variants[:2])
        assert not compression.failed
        slots = {
            label: [layer.num_slots_H for layer in compression.done[label].prefix]
            for label in compression.done
        }
        assert len(set(map(str, slots["evicted"]))) > 1, "every layer has the same slots"
        assert all(slots[label] == slots["evicted"] for label in slots if label != FULL)


def test_long_folds_keep_their_weights(seed: int) -> None:
    """Running sums over many tokens must not wash out the weights of the last groups."""
    num_tokens = 4000
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, num_tokens, 8, generator=generator) for _ in range(3))
    states = LayerStates(q, k, v, 0.5)
    policy = build("random+weighted_kv", {})
    assert isinstance(policy, WeightedKV)
    evidence, budget = evidence_of(policy, states), Budget((200,), 0.05)
    merged = policy.compress(LayerCache.from_dense(k, v), evidence, budget)
    average = policy._average_attention(evidence)[0].double()
    start = 0
    for slot, position in enumerate(merged.position_S.tolist()):
        value = v[0, position].double()
        for token in range(start, position):
            share = average[token] / (average[token] + average[position])
            value = share * v[0, token].double() + (1 - share) * value
        torch.testing.assert_close(merged.v_SD[slot].double(), value, atol=1e-4, rtol=1e-4)
        start = position + 1


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("kvmerger+nearest", {}, PolicyError, "kvmerger does not say which"),
        ("snapkv+nearest+d2o", {}, PolicyError, "nearest does not say which"),
        ("zeromerge+keepkv", {}, PolicyError, "zeromerge does not say which"),
        ("snapkv+nearest+adakv", {}, PolicyError, "ranks tokens"),
        ("protected_mass+adakv", {}, PolicyError, "ranks tokens"),
        ("snapkv+nearst", {}, VariantError, "did you mean 'nearest'"),
        ("snapkv+nearest", {"min_cosine": -1.0}, PolicyError, "min_cosine is a cosine"),
        ("snapkv+nearest", {"weights": "max"}, PolicyError, "'max'"),
        ("snapkv+kvmerger", {"eps": 2}, PolicyError, "eps is a cosine"),
        ("snapkv+kvmerger", {"value_factor": "count", "log_mass": "count"}, PolicyError, "both count"),
        ("snapkv+kvmerger", {"layout": "all_agree"}, PolicyError, "layout"),
        ("snapkv+compensated", {"sigma": 0}, PolicyError, "sigma must be positive"),
        ("snapkv+compensated", {"max_log_mass": -1}, PolicyError, "max_log_mass"),
        ("snapkv+compensated", {"attention_source": "all"}, PolicyError, "attention_source"),
        ("snapkv+compensated", {"mass_window": 0}, PolicyError, "mass_window"),
        ("snapkv+d2o", {"merge_keys": "false"}, PolicyError, "true or false"),
        ("snapkv+keepkv", {"keys": "merged"}, PolicyError, "keys"),
        ("snapkv+kvslimmer", {"keys": "fixed"}, PolicyError, "keys"),
        ("kvslimmer+nearest", {}, PolicyError, "kvslimmer does not say which"),
        ("snapkv+keepkv", {"score_window": 2.5}, PolicyError, "score_window"),
    ],
)
def test_what_makes_no_reducer_is_refused_by_name(name, options, error, message) -> None:
    with pytest.raises(error, match=message):
        build(name, options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("snapkv+nearest", {"window_size": 400}, "window_size"),
        ("knorm+compensated", {"attention_source": "window", "mass_window": 300}, "mass_window"),
        ("knorm+keepkv", {"score_window": 300}, "score_window"),
    ],
)
def test_impossible_budgets_are_refused_before_any_work(name: str, options: dict, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        build(name, options).check(CacheShape(300, 8, 2), KeptRatio(0.5))
