"""PyramidKV's layer budgets: exact in sum, linear but for rounding, SnapKV within a layer."""

import random

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio, LikeVariant, SlotCount
from kvmerger.building import Variant
from kvmerger.contract.layers import NUM_KV_HEADS, NUM_LAYERS, NUM_TOKENS, random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.policies.allocation.adakv import AdaKV
from kvmerger.policies.allocation.pyramidkv import PyramidKV
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.ranking.snapkv import SnapKV
from tests.fakes.random_layers import evidence_for, random_states


def slots_of_layers(policy: PyramidKV, num_slots: int, num_tokens: int, num_layers: int) -> list[int]:
    evidence = evidence_for(policy, random_states(0, num_tokens=num_tokens))
    even = Budget.uniform(num_slots, 2, num_slots / num_tokens)
    budgets = policy.allocate([even] * num_layers, [evidence] * num_layers)
    for budget in budgets:
        assert len(set(budget.num_slots_H)) == 1
        assert budget.asked_ratio == pytest.approx(budget.num_slots_H[0] / num_tokens)
    return [budget.num_slots_H[0] for budget in budgets]


def test_budgets_sum_exactly_and_follow_the_line(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(200):
        num_layers, window, num_tokens = draw.randint(2, 40), draw.randint(1, 30), draw.randint(60, 200)
        num_slots, beta = draw.randint(window + 1, num_tokens), draw.choice([1.5, 2, 20, 1000])
        found = slots_of_layers(PyramidKV(window, beta=beta), num_slots, num_tokens, num_layers)
        assert sum(found) == num_slots * num_layers
        assert found == sorted(found, reverse=True)
        assert window <= found[-1] and found[0] <= num_tokens
        mean = num_slots - window
        highest = min(2 * mean - mean / beta, num_tokens - window)
        lowest = 2 * mean - highest
        for layer, slots in enumerate(found):
            on_the_line = window + highest - (highest - lowest) * layer / (num_layers - 1)
            assert abs(slots - on_the_line) < 1 + 1e-9


@pytest.mark.parametrize("num_slots", [9, 12, 30, 60, 90])
def test_it_is_never_silently_uniform(num_slots: int) -> None:
    assert len(set(slots_of_layers(PyramidKV(8), num_slots, 100, 12))) > 1


def compressed_variant(policy: Policy, seed: int, dtype: torch.dtype, ratio: float = 0.4):
    prefilled = random_prefill(seed, dtype, policy)
    outcome = compress_all(prefilled, [Variant("tried", policy, KeptRatio(ratio))])
    assert not outcome.failed, outcome.failed["tried"].traceback
    return prefilled, outcome.done["tried"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_keeps_what_snapkv_keeps_at_that_size(dtype: torch.dtype, seed: int) -> None:
    prefilled, done = compressed_variant(PyramidKV(16, beta=5), seed, dtype)
    for index, kept in enumerate(done.prefix):
        as_snapkv = SnapKV(16).compress(
            prefilled.layers[index], prefilled.evidence[index], Budget(kept.num_slots_H, 0.4)
        )
        assert torch.equal(kept.position_S, as_snapkv.position_S)
    assert len({kept.num_slots for kept in done.prefix}) == NUM_LAYERS


def test_layers_then_heads_share_out_the_same_total(seed: int) -> None:
    policy = AdaKV(PyramidKV(16))
    _, done = compressed_variant(policy, seed, torch.float32)
    _, plain = compressed_variant(PyramidKV(16), seed, torch.float32)
    assert [kept.num_slots for kept in done.prefix] == [kept.num_slots for kept in plain.prefix]
    assert sum(kept.num_slots for kept in done.prefix) == int(0.4 * NUM_TOKENS) * NUM_LAYERS * NUM_KV_HEADS
    assert any(not kept.is_uniform for kept in done.prefix)


@pytest.mark.parametrize(
    ("shape", "budget", "message"),
    [
        (CacheShape(120, 4, 2), SlotCount(64), "leave nothing to share out"),
        (CacheShape(120, 1, 2), SlotCount(80), "1 layer"),
        (CacheShape(60, 4, 2), KeptRatio(0.5), "pyramidkv: the compressed part has 60 tokens"),
        (CacheShape(120, 4, 2), SlotCount(63), "always keeps 64"),
        (CacheShape(120, 4, 2), LikeVariant("other"), "use snapkv"),
    ],
)
def test_where_no_pyramid_can_be_it_is_refused(shape: CacheShape, budget, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        PyramidKV().check(shape, budget)
    PyramidKV().check(CacheShape(120, 4, 2), SlotCount(65))


@pytest.mark.parametrize("beta", [1, 0.5, True, "steep", float("inf"), float("nan")])
def test_a_pyramid_without_slope_is_refused(beta: object) -> None:
    with pytest.raises(PolicyError, match="beta"):
        PyramidKV(beta=beta)  # type: ignore[arg-type]
