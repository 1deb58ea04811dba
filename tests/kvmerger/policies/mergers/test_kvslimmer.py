"""KVSlimmer against one merge after the other in float64, and what has to hold whatever is merged."""

from dataclasses import replace

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio
from kvmerger.building import build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.mergers.kvslimmer import KVSlimmer
from kvmerger.prefill.evidence import Evidence, LayerStates
from tests.fakes.planted_layers import HEAD_DIM, NUM_HEADS, NUM_TOKENS, assert_slots, planted_states
from tests.slow.pairs import slow_kvslimmer

SMALL = {"n_sink": 4, "window_size": 12}
CASES = [
    ("kvslimmer", {}),
    ("kvslimmer", {"layout": "per_head", "gamma": 15}),
    ("kvslimmer", {"keys": "after_rope", "weights": "linear"}),
    ("kvslimmer", {"as_released": True}),
    ("kvslimmer", {"as_released": True, "layout": "per_head", "keys": "after_rope", "n_sink": 0}),
    ("asymkv_diagonal", {}),
]


def evidence_of(policy: KVSlimmer, states: LayerStates) -> Evidence:
    evidence = Evidence(states, layer_index=3, num_layers=8, prompt_seed=7)
    evidence.capture(policy.needs())
    return evidence


def compressed(policy: KVSlimmer, states: LayerStates, budget: Budget) -> LayerCache:
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    kept = policy.compress(layer, evidence_of(policy, states), budget)
    kept.check_integrity()
    return kept


def made(name: str, options: dict) -> KVSlimmer:
    policy = build(name, {**SMALL, **options})
    assert isinstance(policy, KVSlimmer)
    return policy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_slots", [60, 25])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_equals_one_merge_after_the_other(
    name: str, options: dict, num_slots: int, dtype: torch.dtype, seed: int
) -> None:
    policy, states = made(name, options), planted_states(seed, dtype)
    kept = compressed(policy, states, Budget.uniform(num_slots, NUM_HEADS, 0.5))
    assert kept.num_slots_H == (num_slots,) * NUM_HEADS
    slots = [slot for head in slow_kvslimmer(policy, states, num_slots) for slot in head]
    assert_slots(kept, slots, dtype, has_log_mass=True)
    assert kept.counters["num_merged"] + kept.counters["num_evicted"] == NUM_HEADS * (NUM_TOKENS - num_slots)


@pytest.mark.parametrize("layout", ["shared", "per_head"])
def test_every_token_and_all_of_the_values_are_counted(layout: str, seed: int) -> None:
    policy, states = made("kvslimmer", {"layout": layout}), planted_states(seed, torch.float32)
    kept = compressed(policy, states, Budget.uniform(30, NUM_HEADS, 0.3))
    length_HS = kept.log_mass_S.exp().view(NUM_HEADS, -1)
    torch.testing.assert_close(length_HS.sum(dim=1), torch.full((NUM_HEADS,), float(NUM_TOKENS)))
    sum_HD = (length_HS[..., None] * kept.v_HND).sum(dim=1)
    torch.testing.assert_close(sum_HD, states.v_HND.sum(dim=1), atol=1e-4, rtol=1e-4)
    assert kept.counters["num_evicted"] == 0
    assert torch.equal(kept.position_HS[0], kept.position_HS[1]) is (layout == "shared")


def test_tokens_of_one_key_merge_exactly_for_any_query(seed: int) -> None:
    """And as released they do not: what overlaps is lost."""
    states = planted_states(seed, torch.float32)
    states = replace(states, k_HND=states.k_HND[:, :1].expand(-1, NUM_TOKENS, -1).contiguous())
    q_HD = torch.randn(NUM_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed + 1))

    def error(as_released: bool) -> float:
        policy = made("kvslimmer", {"keys": "after_rope", "as_released": as_released})
        kept = compressed(policy, states, Budget.uniform(20, NUM_HEADS, 0.2))
        logit_HS = torch.einsum("hd,hsd->hs", q_HD, kept.k_HND) + kept.log_mass_S.view(NUM_HEADS, -1)
        output_HD = torch.einsum("hs,hsd->hd", logit_HS.softmax(dim=1), kept.v_HND)
        return float((output_HD - states.v_HND.mean(dim=1)).abs().max())

    assert error(as_released=False) < 1e-5
    assert error(as_released=True) > 1e-2


def test_keys_alike_before_rope_are_one_there(seed: int) -> None:
    states = planted_states(seed, torch.float32)
    half = HEAD_DIM // 2
    turn_NF = torch.arange(NUM_TOKENS)[:, None] * states.rotary.inv_freq
    first, second = states.k_HND[:, :1].split(half, dim=2)
    k_HND = torch.cat(
        [first * turn_NF.cos() - second * turn_NF.sin(), second * turn_NF.cos() + first * turn_NF.sin()],
        dim=2,
    )
    kept = compressed(made("kvslimmer", {}), replace(states, k_HND=k_HND), Budget.uniform(40, NUM_HEADS, 0.4))
    expected_HSD = torch.stack([k_HND[head, kept.position_HS[head].long()] for head in range(NUM_HEADS)])
    torch.testing.assert_close(kept.k_HND, expected_HSD, atol=1e-4, rtol=1e-4)


def test_tokens_that_are_not_merged_stay_bit_for_bit(seed: int) -> None:
    states = planted_states(seed, torch.bfloat16)
    kept = compressed(made("kvslimmer", {}), states, Budget.uniform(70, NUM_HEADS, 0.7))
    is_single_HS = kept.log_mass_S.view(NUM_HEADS, -1) == 0
    for head in range(NUM_HEADS):
        place = kept.position_HS[head][is_single_HS[head]].long()
        assert {*range(4), *range(NUM_TOKENS - 12, NUM_TOKENS)} <= set(place.tolist())
        assert torch.equal(kept.k_HND[head][is_single_HS[head]], states.k_HND[head][place])
        assert torch.equal(kept.v_HND[head][is_single_HS[head]], states.v_HND[head][place])


def test_heads_may_have_unlike_budgets_where_each_has_its_own_slots(seed: int) -> None:
    states = planted_states(seed, torch.float32)
    kept = compressed(made("kvslimmer", {"layout": "per_head"}), states, Budget((NUM_TOKENS, 30), 0.6))
    assert kept.num_slots_H == (NUM_TOKENS, 30)
    for options in ({}, {"layout": "per_head", "as_released": True}):
        with pytest.raises(BudgetError, match="one budget for all heads"):
            compressed(made("kvslimmer", options), states, Budget((50, 30), 0.4))


def test_a_whole_budget_changes_nothing(seed: int) -> None:
    states, policy = planted_states(seed, torch.float32), made("kvslimmer", {})
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    assert (
        policy.compress(layer, evidence_of(policy, states), Budget.uniform(NUM_TOKENS, NUM_HEADS, 1.0))
        is layer
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "gradient"}, "weights must be one of"),
        ({"keys": "moved"}, "keys must be one of"),
        ({"layout": "all_agree"}, "layout must be one of"),
        ({"n_sink": -1}, "n_sink"),
        ({"window_size": 0}, "window_size"),
        ({"gamma": 0}, "gamma must be positive"),
        ({"as_released": "yes"}, "as_released must be true or false"),
    ],
)
def test_values_outside_their_domain_are_refused(options: dict, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        build("kvslimmer", options)


def test_a_budget_without_room_to_merge_is_refused_before_any_work() -> None:
    with pytest.raises(BudgetError, match="n_sink=32 and window_size=64"):
        build("kvslimmer", {}).check(CacheShape(300, 8, 2), KeptRatio(0.3))
