"""DynamicKV's layers against a count token by token; and what all allocators by layer have in common."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio, LikeVariant, SlotCount
from kvmerger.building import Variant, build
from kvmerger.contract.layers import NUM_KV_HEADS, NUM_LAYERS, NUM_TOKENS, random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.policies.allocation.dynamickv import DynamicKV
from kvmerger.policies.allocation.layers import LayerAllocator
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.h2o import H2O
from kvmerger.policies.ranking.keydiff import KeyDiff
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import ATTENTION_MASS, Evidence
from kvmerger.variants import parse_policy_entry
from tests.fakes.random_layers import evidence_for, random_states
from tests.slow.sharing import dynamickv as slow

FRONTS = [SnapKV(8, 7), H2O(), KeyDiff()]


def allotted(policy: LayerAllocator, num_slots: int, evidence_L: Sequence[Evidence]) -> list[int]:
    num_tokens = evidence_L[0].num_tokens
    even = Budget.uniform(num_slots, NUM_KV_HEADS, num_slots / num_tokens)
    budget_L = policy.allocate([even] * len(evidence_L), evidence_L)
    for budget in budget_L:
        assert len(set(budget.num_slots_H)) == 1
        assert budget.asked_ratio == pytest.approx(budget.num_slots_H[0] / num_tokens)
    return [budget.num_slots_H[0] for budget in budget_L]


@pytest.mark.parametrize("num_slots", [9, 40, 150, NUM_TOKENS - 1])
@pytest.mark.parametrize("inner", FRONTS, ids=str)
def test_layers_get_what_a_count_of_the_models_best_gives(
    inner: ScoringPolicy, num_slots: int, seed: int
) -> None:
    policy = DynamicKV(inner, most_times_mean=1.5)
    evidence_L = random_prefill(seed, torch.float32, policy).evidence
    even = Budget.uniform(num_slots, NUM_KV_HEADS, num_slots / NUM_TOKENS)
    scores = [inner.scores_at(evidence, even).tolist() for evidence in evidence_L]
    found = allotted(policy, num_slots, evidence_L)
    assert found == slow.slots(scores, num_slots, max(1, inner.num_protected), 1.5)
    assert sum(found) == num_slots * NUM_LAYERS


def of_masses(masses: Sequence[float], seed: int) -> list[Evidence]:
    """Layers in which attention is ``masses`` times as large as in the first."""
    states = random_states(seed)
    evidence_L = [evidence_for(H2O(), states) for _ in masses]
    for evidence, mass in zip(evidence_L, masses, strict=True):
        evidence.put(ATTENTION_MASS, evidence_L[0].get(ATTENTION_MASS) * mass)
    return evidence_L


def test_layers_that_are_alike_get_the_same_and_one_without_attention_its_least(seed: int) -> None:
    policy = DynamicKV(build("observed_attention", {}))
    assert allotted(policy, 31, of_masses([1, 1, 1, 1], seed)) == [31] * 4
    assert allotted(policy, 31, of_masses([1, 0, 1], seed)) == [46, 1, 46]
    # Ten times the mean and no more, also where all of the best lie in one layer.
    least, most = sorted(set(allotted(policy, 3, of_masses([1] + [1e-9] * 15, seed))))[::2]
    assert (least, most) == (1, 21)


def test_within_a_layer_the_ranking_chooses(seed: int) -> None:
    policy = DynamicKV(SnapKV(16))
    prefilled = random_prefill(seed, torch.float32, policy)
    outcome = compress_all(prefilled, [Variant("tried", policy, KeptRatio(0.3))])
    lengths = set()
    for index, kept in enumerate(outcome.done["tried"].prefix):
        as_snapkv = SnapKV(16).compress(
            prefilled.layers[index], prefilled.evidence[index], Budget(kept.num_slots_H, 0.3)
        )
        assert torch.equal(kept.position_S, as_snapkv.position_S)
        lengths.add(kept.num_slots_H)
    assert len(lengths) > 1
    assert sum(layer.num_slots for layer in outcome.done["tried"].prefix) == (
        int(0.3 * NUM_TOKENS) * NUM_KV_HEADS * NUM_LAYERS
    )


def test_heads_may_share_out_what_a_layer_got(seed: int) -> None:
    policy = build("snapkv+dynamickv+adakv", {"window_size": 16})
    prefilled = random_prefill(seed, torch.float32, policy)
    alone = build("snapkv+dynamickv", {"window_size": 16})
    done = compress_all(
        prefilled, [Variant("both", policy, KeptRatio(0.4)), Variant("one", alone, KeptRatio(0.4))]
    ).done
    assert [it.num_slots for it in done["both"].prefix] == [it.num_slots for it in done["one"].prefix]
    assert any(not kept.is_uniform for kept in done["both"].prefix)


def test_its_bare_name_is_the_published_method() -> None:
    bare, spelt = (
        parse_policy_entry({"name": name, "budget": 0.5, "window_size": 8, "kernel_size": 7})[0].canonical()
        for name in ("dynamickv", "snapkv+dynamickv")
    )
    assert bare == spelt
    assert build("tova+dynamickv", {}).heads_agree and not build("snapkv+dynamickv", {}).heads_agree


@pytest.mark.parametrize(
    ("shape", "budget", "message"),
    [
        (CacheShape(120, 4, 2), SlotCount(64), "leave nothing to share out"),
        (CacheShape(120, 1, 2), SlotCount(80), "1 layer"),
        (CacheShape(60, 4, 2), KeptRatio(0.5), "has 60 tokens"),
        (CacheShape(120, 4, 2), LikeVariant("other"), "use snapkv alone"),
    ],
)
def test_where_there_is_nothing_to_share_out_it_is_refused(shape: CacheShape, budget, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        DynamicKV(SnapKV()).check(shape, budget)
    DynamicKV(SnapKV()).check(CacheShape(120, 4, 2), SlotCount(65))


@pytest.mark.parametrize("name", ["kvmerger+dynamickv", "snapkv+adakv+dynamickv", "pyramidkv+dynamickv"])
def test_what_shares_out_already_or_does_not_rank_is_refused(name: str) -> None:
    with pytest.raises(PolicyError, match="dynamickv shares slots out among layers"):
        build(name, {})


@pytest.mark.parametrize("value", [0.5, True, "much", float("inf"), float("nan")])
def test_a_bound_below_the_mean_is_refused(value: object) -> None:
    with pytest.raises(PolicyError, match="most_times_mean"):
        DynamicKV(SnapKV(), most_times_mean=value)  # type: ignore[arg-type]
