"""XKV's layers against its greedy choice slot by slot, and what an optimum must be."""

from __future__ import annotations

import itertools

import pytest
import torch

from kvmerger.budget import Budget
from kvmerger.building import build
from kvmerger.contract.layers import NUM_KV_HEADS, NUM_LAYERS, NUM_TOKENS, random_prefill
from kvmerger.policies.allocation.xkv import XKV
from kvmerger.policies.base import PolicyError
from kvmerger.policies.ranking.h2o import H2O
from kvmerger.policies.ranking.keydiff import KeyDiff
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.massive import MASSIVE
from kvmerger.variants import parse_policy_entry
from tests.kvmerger.policies.allocation.test_dynamickv import allotted, of_masses
from tests.slow.sharing import xkv as slow

FRONTS = [SnapKV(8, 7), H2O(), KeyDiff()]


@pytest.mark.parametrize("num_slots", [9, 40, 150, NUM_TOKENS - 1])
@pytest.mark.parametrize("inner", FRONTS, ids=str)
def test_layers_get_what_the_greedy_choice_gives(inner: ScoringPolicy, num_slots: int, seed: int) -> None:
    policy = XKV(inner)
    evidence_L = random_prefill(seed, torch.float32, policy).evidence
    even = Budget.uniform(num_slots, NUM_KV_HEADS, num_slots / NUM_TOKENS)
    scores = [inner.scores_at(evidence, even).tolist() for evidence in evidence_L]
    found = allotted(policy, num_slots, evidence_L)
    assert found == slow.slots(scores, num_slots, max(1, inner.num_protected))
    assert sum(found) == num_slots * NUM_LAYERS


def test_no_other_sharing_out_keeps_more(seed: int) -> None:
    inner = SnapKV(8, 7)
    policy = XKV(inner)
    evidence_L = random_prefill(seed, torch.float32, policy).evidence[:3]
    even = Budget.uniform(12, NUM_KV_HEADS, 12 / NUM_TOKENS)
    gains = [slow.gains(inner.scores_at(evidence, even).tolist()) for evidence in evidence_L]
    found = slow.gained(gains, allotted(policy, 12, evidence_L), 8)
    others = [
        slow.gained(gains, [8 + first, 8 + second, 20 - first - second], 8)
        for first, second in itertools.product(range(13), repeat=2)
        if first + second <= 12
    ]
    assert found == pytest.approx(max(others), rel=1e-12)


def test_more_slots_never_take_one_from_a_layer(seed: int) -> None:
    policy = XKV(KeyDiff())
    evidence_L = random_prefill(seed, torch.float32, policy).evidence
    rows = [allotted(policy, num_slots, evidence_L) for num_slots in range(2, 90, 11)]
    for fewer, more in itertools.pairwise(rows):
        assert all(a <= b for a, b in zip(fewer, more, strict=True))


def test_layers_count_by_share_and_one_without_attention_has_its_least(seed: int) -> None:
    policy = XKV(build("observed_attention", {}))
    # Four times the attention is no larger share of it; powers of two round alike.
    assert allotted(policy, 31, of_masses([1, 1, 4, 1], seed)) == [31] * 4
    assert allotted(policy, 31, of_masses([1, 0, 1], seed)) == [46, 1, 46]


def test_massive_tokens_come_before_a_layers_best(seed: int) -> None:
    policy = build("snapkv+protect_massive+xkv", {"window_size": 8})
    evidence_L = random_prefill(seed, torch.float32, policy).evidence
    for evidence in evidence_L:
        evidence.put(MASSIVE, torch.zeros(NUM_TOKENS))
    plain = allotted(build("snapkv+xkv", {"window_size": 8}), 20, evidence_L)
    assert allotted(policy, 20, evidence_L) == plain
    evidence_L[0].put(MASSIVE, (torch.arange(NUM_TOKENS) < 40) * 1e6)
    with_massive = allotted(policy, 20, evidence_L)
    assert with_massive[0] > plain[0] and sum(with_massive) == sum(plain)


def test_its_bare_name_is_the_published_method() -> None:
    bare, spelt = (
        parse_policy_entry({"name": name, "budget": 0.5, "window_size": 8, "kernel_size": 7})[0].canonical()
        for name in ("xkv", "snapkv+xkv")
    )
    assert bare == spelt
    with pytest.raises(PolicyError, match="xkv shares slots out among layers, and dynamickv has"):
        build("snapkv+dynamickv+xkv", {})
