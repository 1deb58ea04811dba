"""Whole blocks, in all heads alike, against a choice made block by block."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio, LikeVariant, SlotCount
from kvmerger.building import build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.allocation.blocks16 import Blocks16
from kvmerger.policies.allocation.pyramidkv import PyramidKV
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.keydiff import KeyDiff
from kvmerger.policies.ranking.random_tokens import Random
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.policies.ranking.streaming_llm import StreamingLLM
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence
from tests.fakes.random_layers import DTYPES, NUM_KV_HEADS, random_states
from tests.slow import blocks as slow

NUM_LAYERS, NUM_TOKENS = 3, 119
FRONTS = [SnapKV(window_size=8), KeyDiff(), Random(), StreamingLLM()]


def layers(
    policy: Blocks16, seed: int, dtype: torch.dtype, num_tokens: int
) -> tuple[list[LayerCache], list[Evidence]]:
    """Layers of unlike sizes of keys, and what the policy's ranking reads of them."""
    caches, evidence_L = [], []
    for index in range(NUM_LAYERS):
        states = random_states(seed + index, dtype, num_tokens)
        states.k_HND.mul_(1 + 3 * index)
        evidence = Evidence(states, index, NUM_LAYERS, prompt_seed=5)
        evidence.capture(policy.needs())
        caches.append(LayerCache.from_dense(states.k_HND, states.v_HND))
        evidence_L.append(evidence)
    return caches, evidence_L


def kept_by(
    policy: Blocks16, caches: list[LayerCache], evidence_L: list[Evidence], num_slots: int
) -> list[list[list[int]]]:
    """Tokens by layer and head."""
    ratio = num_slots / evidence_L[0].num_tokens
    even_L = [Budget.uniform(num_slots, NUM_KV_HEADS, ratio)] * len(caches)
    budget_L = policy.allocate(even_L, evidence_L)
    kept_L = [policy.compress(*of_layer) for of_layer in zip(caches, evidence_L, budget_L, strict=True)]
    for kept, evidence, budget in zip(kept_L, evidence_L, budget_L, strict=True):
        assert policy.select(evidence, budget).sum(dim=1).tolist() == list(kept.num_slots_H)
    return [[part.tolist() for part in kept.position_S.split(kept.num_slots_H)] for kept in kept_L]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_tokens", "block_size"), [(119, 16), (112, 16), (119, 1), (119, 7), (119, 40)])
@pytest.mark.parametrize("inner", FRONTS, ids=str)
def test_the_best_whole_blocks_stay(
    inner: ScoringPolicy, num_tokens: int, block_size: int, dtype: torch.dtype, seed: int
) -> None:
    for shared_by in ("model", "layer"):
        policy = Blocks16(inner, block_size, shared_by)
        caches, evidence_L = layers(policy, seed, dtype, num_tokens)
        least = inner.num_protected + 2 * (block_size - 1) if inner.num_protected else block_size
        for num_slots in range(least, num_tokens + 1, 13):
            budget = Budget.uniform(num_slots, NUM_KV_HEADS, num_slots / num_tokens)
            scores_LHN = [inner.scores_at(evidence, budget).double().tolist() for evidence in evidence_L]
            together = [scores_LHN] * NUM_LAYERS if shared_by == "model" else [[it] for it in scores_LHN]
            expected = [
                [slow.kept(of_layers, num_slots, block_size)] * NUM_KV_HEADS for of_layers in together
            ]
            found = kept_by(policy, caches, evidence_L, num_slots)
            differing = {*found[0][0]} ^ {*expected[0][0]}
            # Two blocks whose sums are equal but for rounding may be exchanged.
            assert found == expected or len(differing) == 2 * block_size


@pytest.mark.parametrize("shared_by", ["model", "layer"])
def test_what_is_protected_and_the_last_block_stay(shared_by: str, seed: int) -> None:
    policy = build("snapkv+blocks16", {"window_size": 20, "shared_by": shared_by})
    assert isinstance(policy, Blocks16)
    caches, evidence_L = layers(policy, seed, torch.float32, NUM_TOKENS)
    for num_slots in (50, 51, 66, 100):
        for tokens in [
            tokens for of_layer in kept_by(policy, caches, evidence_L, num_slots) for tokens in of_layer
        ]:
            assert {*range(NUM_TOKENS - 20, NUM_TOKENS)} <= {*tokens}
            starts = {token // 16 for token in tokens}
            assert tokens == [token for token in range(NUM_TOKENS) if token // 16 in starts]
            assert num_slots - 16 < len(tokens) <= num_slots


def test_blocks_of_one_token_in_one_layer_with_one_head_are_the_ranking(seed: int) -> None:
    inner = SnapKV(window_size=8)
    policy = Blocks16(inner, block_size=1)
    states = random_states(seed)
    evidence = Evidence(states, 0, 1, prompt_seed=5)
    evidence.capture(policy.needs())
    scores_HN = inner.scores(evidence).sum(dim=0, keepdim=True)
    budget = Budget.uniform(50, NUM_KV_HEADS, 0.4)
    policy.allocate([budget], [evidence])
    best = scores_HN[0].sort(descending=True, stable=True).indices[:50]
    assert policy.select(evidence, budget)[0].nonzero().flatten().tolist() == best.sort().values.tolist()


def test_each_layer_may_have_slots_of_its_own(seed: int) -> None:
    policy = Blocks16(PyramidKV(window_size=8, beta=2), shared_by="layer")
    caches, evidence_L = layers(policy, seed, torch.float32, NUM_TOKENS)
    lengths = [len(of_layer[0]) for of_layer in kept_by(policy, caches, evidence_L, 72)]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1]


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("snapkv+adakv+blocks16", {}, "adakv gives them unlike numbers"),
        ("defensivekv+blocks16", {}, "compete: head"),
        ("pyramidkv+blocks16", {}, "shared_by: layer"),
        ("kvmerger+blocks16", {}, "ranks tokens by scores"),
        ("snapkv+blocks16+adakv", {}, "needs a policy that ranks"),
        ("snapkv+blocks16", {"block_size": 0}, "block_size"),
        ("snapkv+blocks16", {"shared_by": "head"}, "shared_by"),
    ],
)
def test_what_has_no_meaning_is_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        build(name, params)


def test_a_ranking_whose_heads_keep_equally_many_may_stand_in_front() -> None:
    assert build("defensivekv+blocks16", {"compete": "head"}).needs()


def test_budgets_it_cannot_meet_are_refused(seed: int) -> None:
    shape = CacheShape(NUM_TOKENS, 4, NUM_KV_HEADS)
    with pytest.raises(BudgetError, match="fixes every head's slots"):
        Blocks16(KeyDiff()).check(shape, LikeVariant("other"))
    with pytest.raises(BudgetError, match="may take 38 slots"):
        Blocks16(SnapKV(window_size=8)).check(shape, SlotCount(37))
    with pytest.raises(BudgetError, match="may take 16 slots"):
        Blocks16(KeyDiff()).check(shape, SlotCount(15))
    Blocks16(SnapKV(window_size=8)).check(shape, KeptRatio(1.0))
    policy = Blocks16(KeyDiff())
    caches, evidence_L = layers(policy, seed, torch.float32, NUM_TOKENS)
    with pytest.raises(BudgetError, match="the same tokens in all heads"):
        policy.compress(caches[0], evidence_L[0], Budget((40, 50), 0.4))
    with pytest.raises(BudgetError, match=r"allocate\(\), which was not called"):
        policy.compress(caches[0], evidence_L[0], Budget((40, 40), 0.4))
