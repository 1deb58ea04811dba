"""What became of massive tokens: against loops, against the counters of merging, and where there is nothing to tell."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvmerger.budget import Budget, KeptRatio
from kvmerger.building import Variant, build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.contract.layers import NUM_KV_HEADS as CONTRACT_HEADS
from kvmerger.contract.layers import NUM_LAYERS, random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.engine.degenerate import merged_counters
from kvmerger.engine.fused import needs_of
from kvmerger.merging.noted import noting_members
from kvmerger.policies.base import Policy
from kvmerger.prefill.evidence import Evidence, LayerStates
from kvmerger.prefill.massive import MASSIVE
from kvmerger.prefill.massive_counts import counting_massive
from tests.fakes.random_layers import NUM_KV_HEADS, NUM_TOKENS, random_states
from tests.slow import massive as slow

NAMES = ("num_massive", "num_massive_dropped", "num_massive_merged")
RAGGED = Budget((30, 45), 0.3)


def massive_of(seed: int, count: int) -> set[int]:
    generator = torch.Generator().manual_seed(seed)
    return set(torch.randperm(NUM_TOKENS, generator=generator)[:count].tolist())


def states_of(seed: int, massive: set[int]) -> LayerStates:
    generator = torch.Generator().manual_seed(seed)
    residual_NE = torch.randn(NUM_TOKENS, 8, generator=generator)
    residual_NE[list(massive), 5] = 2000.0
    return replace(random_states(seed), residual_NE=residual_NE)


def counters_of(policy: Policy, states: LayerStates) -> dict[str, float]:
    evidence = Evidence(states, 1, 4, prompt_seed=5)
    evidence.capture(policy.needs() | {MASSIVE})
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    with noting_members() as merged:
        kept = policy.compress(layer, evidence, RAGGED)
    return dict(
        counting_massive(kept, layer, evidence, merged, is_eviction=policy.keeps_slots_unchanged).counters
    )


def test_an_eviction_drops_what_it_does_not_hold(seed: int) -> None:
    massive, policy = massive_of(seed, 20), build("knorm", {})
    states = states_of(seed, massive)
    counters = counters_of(policy, states)
    norms = states.k_HND.double().norm(dim=2).tolist()
    expected = 0
    for of_head, num_slots in zip(norms, RAGGED.num_slots_H, strict=True):
        expected += len(massive - set(sorted(range(NUM_TOKENS), key=of_head.__getitem__)[:num_slots]))
    assert [counters[name] for name in NAMES] == [20 * NUM_KV_HEADS, expected, 0]
    assert counters["num_evicted"] == NUM_TOKENS * NUM_KV_HEADS - sum(RAGGED.num_slots_H)
    assert 2000 < counters["largest_times_median"] < 5000


@pytest.mark.parametrize("min_cosine", [0.0, 0.6])
def test_a_merging_is_told_from_an_eviction(min_cosine: float, seed: int) -> None:
    massive, policy = massive_of(seed, 20), build("knorm+nearest", {"min_cosine": min_cosine})
    states = states_of(seed, massive)
    counters = counters_of(policy, states)
    k_HND, expected = states.k_HND.double(), [20 * NUM_KV_HEADS, 0, 0]
    for k_ND, num_slots in zip(k_HND, RAGGED.num_slots_H, strict=True):
        norms = k_ND.norm(dim=1).tolist()
        kept = set(sorted(range(NUM_TOKENS), key=norms.__getitem__)[:num_slots])
        dropped, merged = slow.fates(k_ND.tolist(), kept, massive, min_cosine)
        expected[1] += dropped
        expected[2] += merged
    assert [counters[name] for name in NAMES] == expected


@pytest.mark.parametrize("reducer", ["compensated", "kvmerger", "nearest", "d2o", "keepkv", "weighted_kv"])
def test_where_all_tokens_are_massive_the_counters_are_those_of_merging(reducer: str, seed: int) -> None:
    policy = build(f"knorm+{reducer}", {"eps": -0.9} if reducer == "kvmerger" else {})
    counters = counters_of(policy, states_of(seed, set(range(NUM_TOKENS))))
    assert counters["num_massive"] == NUM_TOKENS * NUM_KV_HEADS
    assert counters["num_massive_dropped"] == counters["num_evicted"]
    # And the slots that they were merged into.
    num_changed = counters["num_massive_merged"] - counters["num_merged"]
    assert 0 < num_changed <= counters["num_merging_sets"] and counters["num_merged"] > 0


def test_new_positions_tell_nothing(seed: int) -> None:
    policy = build("knorm+protect_massive+key_rerotation", {})
    compression = compress_all(
        random_prefill(seed, torch.float32, policy), [Variant("it", policy, KeptRatio(0.5))]
    )
    assert not compression.failed
    assert not set(NAMES) & set(merged_counters(compression.done["it"].prefix))


def test_rows_have_them_where_asked_for_and_where_the_policy_protects(seed: int) -> None:
    guarded, plain = build("knorm+protect_massive", {}), build("knorm", {})
    prefilled = random_prefill(seed, torch.float32, guarded)
    variants = [
        Variant("guarded", guarded, KeptRatio(0.5)),
        Variant("plain", plain, KeptRatio(0.5)),
        Variant("counted", plain, KeptRatio(0.5), counts_massive=True),
    ]
    compression = compress_all(prefilled, variants)
    assert not compression.failed
    found = {label: merged_counters(done.prefix) for label, done in compression.done.items()}
    # Two in every layer but the first.
    num_massive = 2 * CONTRACT_HEADS * (NUM_LAYERS - 1)
    assert [found["guarded"][name] for name in NAMES] == [num_massive, 0, 0]
    assert found["counted"]["num_massive"] == num_massive
    assert not set(NAMES) & set(found["plain"])
    mine, others = found["counted"], found["plain"]
    assert {name: value for name, value in mine.items() if name in others} == others
    dropped = 0
    for layer in compression.done["plain"].prefix[1:]:
        kept = layer.position_S.split(list(layer.num_slots_H))
        dropped += sum(token not in of_head.tolist() for of_head in kept for token in (0, 311 // 3))
    assert mine["num_massive_dropped"] == dropped
    assert needs_of(variants[2:]) - needs_of(variants[1:2]) == {MASSIVE}


def test_without_the_evidence_a_variant_does_as_well(seed: int) -> None:
    plain = build("knorm", {})
    prefilled = random_prefill(seed, torch.float32, plain)
    compression = compress_all(prefilled, [Variant("it", plain, KeptRatio(0.5), counts_massive=True)])
    assert not compression.failed
    assert not set(NAMES) & set(merged_counters(compression.done["it"].prefix))
