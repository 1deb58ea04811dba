"""Layers as one and one as layers: nothing is lost, copied without need, or kept alive by mistake."""

import random

import pytest
import torch

import kvmerger.engine.stacks
from kvmerger.budget import Budget
from kvmerger.building import build
from kvmerger.cache.head_counters import HeadCounters, PerHead
from kvmerger.cache.layer_cache import LayerCache, room_for
from kvmerger.contract.layers import NUM_KV_HEADS, NUM_LAYERS, NUM_TOKENS, random_prefill
from kvmerger.engine.stacks import Stacks, stacked, unstacked
from kvmerger.kernels.reference.ranking import marked_places
from kvmerger.prefill.evidence import KEY_NORMS

EVEN = Budget.uniform(NUM_TOKENS // 2, NUM_KV_HEADS, 0.5)


@pytest.mark.parametrize("is_one_block", [True, False])
def test_layers_of_one_storage_are_stacked_without_a_copy(is_one_block: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k_LHND, v_LHND = torch.randn(2, 5, 2, 7, 3, generator=generator)
    layers = room_for(5, k_LHND[0])
    for layer, k_HND, v_HND in zip(layers, k_LHND, v_LHND, strict=True):
        layer.k_HND.copy_(k_HND)
        layer.v_HND.copy_(v_HND)
    if not is_one_block:
        layers = tuple(
            LayerCache.from_dense(k_HND.clone(), v_HND.clone())
            for k_HND, v_HND in zip(k_LHND, v_LHND, strict=True)
        )
    one = stacked(layers[1:4])
    assert torch.equal(one.k_SD, k_LHND[1:4].reshape(-1, 3))
    assert torch.equal(one.v_SD, v_LHND[1:4].reshape(-1, 3))
    assert one.position_S.tolist() == [*range(7)] * 6
    assert one.num_slots_H == (7,) * 6
    assert (one.k_SD.data_ptr() == layers[1].k_SD.data_ptr()) is is_one_block


def test_a_kept_stack_comes_apart_layer_by_layer(seed: int) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    slots_H = tuple(rng.randint(0, 9) for _ in range(6))
    num_slots = sum(slots_H)
    kept = LayerCache(
        *torch.randn(2, num_slots, 4, generator=generator),
        torch.arange(num_slots, dtype=torch.int32),
        slots_H,
        torch.randn(num_slots, generator=generator),
        HeadCounters(
            {
                "num_a": PerHead(torch.tensor([1, 2, 3, 4, 5, 6])),
                "largest_b": PerHead(torch.tensor([1, 2, 3, 4, 6, 5])),
                "is_c": PerHead(torch.tensor([True, True, False, True, False, False])),
                "mean_d": PerHead(
                    torch.tensor([1.0, 4.0, 7.0, 9.0, 5.0, 5.0]), torch.tensor([1, 2, 0, 0, 3, 1])
                ),
                "e": PerHead(torch.tensor([1.0, 2.0, 4.0, 4.0, 0.0, 1.0])),
            }
        ),
    )
    parts = unstacked(kept, 3)
    for name in ("k_SD", "v_SD", "position_S", "log_mass_S"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(kept, name))
    assert [part.num_slots_H for part in parts] == [slots_H[:2], slots_H[2:4], slots_H[4:]]
    assert [part.counters for part in parts] == [
        {"num_a": 3, "largest_b": 2, "is_c": 1, "mean_d": 3, "e": 1.5},
        {"num_a": 7, "largest_b": 4, "is_c": 0, "e": 4},
        {"num_a": 11, "largest_b": 6, "is_c": 0, "mean_d": 5, "e": 0.5},
    ]
    for part in parts:
        part.check_integrity()
    with pytest.raises(ValueError, match="head by head"):
        unstacked(kept.with_counters({"num_a": 21.0}), 3)


def test_layers_are_stacked_while_they_are_alike_and_fit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = build("kvmerger", {"mode": "threshold", "skip_layers": (0, -1)})
    prefilled = random_prefill(seed, torch.float32, policy)
    stacks = Stacks(prefilled.layers, prefilled.evidence)
    layer_bytes = prefilled.layers[0].k_SD.nbytes
    monkeypatch.setitem(kvmerger.engine.stacks._MOST_KEY_BYTES, "cpu", 4 * layer_bytes)
    assert NUM_LAYERS == 8
    together = [range(1), range(1, 5), range(5, 7), range(7, 8)]
    assert list(stacks.stretches(policy, [EVEN] * 8)) == together
    monkeypatch.setitem(kvmerger.engine.stacks._MOST_KEY_BYTES, "cpu", layer_bytes - 1)
    assert list(stacks.stretches(policy, [EVEN] * 8)) == [range(index, index + 1) for index in range(8)]


def test_a_ranking_takes_layers_of_any_budgets_and_a_sharing_of_it_only_equal_ones(seed: int) -> None:
    policy = build("knorm", {})
    prefilled = random_prefill(seed, torch.float32, policy)
    stacks = Stacks(prefilled.layers, prefilled.evidence)
    other = Budget.uniform(9, NUM_KV_HEADS, 0.1)
    budget_L = [EVEN, EVEN, other, *[EVEN] * 5]
    assert list(stacks.stretches(policy, budget_L)) == [range(8)]
    apart = [range(2), range(2, 3), range(3, 8)]
    assert list(stacks.stretches(build("knorm+adakv", {}), budget_L)) == apart


def test_stacked_evidence_is_every_layers(seed: int) -> None:
    prefilled = random_prefill(seed, torch.float32, build("knorm", {}))
    _, evidence = Stacks(prefilled.layers, prefilled.evidence).of(range(2, 5))
    norms_HN = evidence.get(KEY_NORMS)
    expected_LHN = torch.stack([layer.k_HND.norm(dim=-1) for layer in prefilled.layers[2:5]])
    torch.testing.assert_close(evidence.by_layer(norms_HN), expected_LHN)
    means_LN = evidence.by_layer(norms_HN).mean(dim=1)
    assert torch.equal(evidence.for_heads(means_LN), means_LN.repeat_interleave(NUM_KV_HEADS, dim=0))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_marked_places_are_those_that_nonzero_finds(share: float, seed: int) -> None:
    is_marked_F = torch.rand(257, generator=torch.Generator().manual_seed(seed)) < share
    places = is_marked_F.nonzero().squeeze(1)
    assert torch.equal(marked_places(is_marked_F, places.numel()), places)
