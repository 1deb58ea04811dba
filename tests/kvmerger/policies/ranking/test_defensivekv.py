"""DefensiveKV and Layer-DefensiveKV against a reference written apart, and what must not change their choice."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import nn

from kvmerger.budget import Budget, BudgetError, SlotCount
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.allocation.adakv import AdaKV
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.defensivekv import DefensiveKV, LayerDefensiveKV
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.prefill.evidence import Evidence, LayerStates
from tests.fakes.random_layers import HEAD_DIM, NUM_KV_HEADS, NUM_QUERY_HEADS, NUM_TOKENS
from tests.slow.ranking import defensivekv as slow

NUM_LAYERS, HIDDEN_SIZE, RATIO = 3, 12, 0.4
EVEN = Budget.uniform(int(NUM_TOKENS * RATIO), NUM_KV_HEADS, RATIO)
POLICIES = [
    DefensiveKV(window_size=8),
    DefensiveKV(window_size=5, kernel_size=1, guaranteed_mass=0.5),
    DefensiveKV(window_size=8, kernel_size=7, guaranteed_mass=0, floor_at_mean=False),
    LayerDefensiveKV(window_size=8),
]


class Projected(nn.Module):
    """What evidence reads of an attention module."""

    def __init__(self, weight_EX: torch.Tensor) -> None:
        super().__init__()
        self.o_proj = nn.Linear(weight_EX.shape[1], weight_EX.shape[0], bias=False).requires_grad_(False)
        self.o_proj.weight = nn.Parameter(weight_EX, requires_grad=False)


def random_layers(
    seed: int, dtype: torch.dtype = torch.float32, layers: int = NUM_LAYERS
) -> list[LayerStates]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return [
        LayerStates(
            # Unlike layers: sharper attention the later it is.
            (1 + layer) * draw(NUM_QUERY_HEADS, NUM_TOKENS, HEAD_DIM), draw(NUM_KV_HEADS, NUM_TOKENS, HEAD_DIM),
            draw(NUM_KV_HEADS, NUM_TOKENS, HEAD_DIM), 0.5, draw(NUM_TOKENS, HIDDEN_SIZE),
            Projected(draw(HIDDEN_SIZE, NUM_QUERY_HEADS * HEAD_DIM)), nn.Identity(),
        )
        for layer in range(layers)
    ]  # fmt: skip


def evidence_of(policy: DefensiveKV, states_L: list[LayerStates]) -> list[Evidence]:
    evidence_L = [Evidence(states, index, len(states_L), 5) for index, states in enumerate(states_L)]
    for evidence in evidence_L:
        evidence.capture(policy.needs())
    return evidence_L


def kept_by(policy: DefensiveKV, states_L: list[LayerStates], even: Budget = EVEN) -> list[list[list[int]]]:
    """Tokens by layer and head, as the engine has them: first every head's slots, then which."""
    evidence_L = evidence_of(policy, states_L)
    budget_L = policy.allocate([even] * len(states_L), evidence_L)
    assert sum(budget.num_slots for budget in budget_L) == even.num_slots * len(states_L)
    kept_L = [
        policy.compress(LayerCache.from_dense(states.k_HND, states.v_HND), evidence, budget)
        for states, evidence, budget in zip(states_L, evidence_L, budget_L, strict=True)
    ]
    return [[part.tolist() for part in kept.position_S.split(kept.num_slots_H)] for kept in kept_L]


def reference(policy: DefensiveKV, states: LayerStates, even: Budget = EVEN) -> slow.Scores:
    assert isinstance(states.attention, Projected)
    return slow.scores(
        (states.q_QND, states.k_HND, states.v_HND, states.scaling), states.attention.o_proj.weight,
        policy.window_size, policy.kernel_size, policy.guaranteed_mass,
        even.num_slots_H[0] - policy.window_size, policy.floor_at_mean,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_scores_follow_the_formula(policy: DefensiveKV, dtype: torch.dtype, seed: int) -> None:
    states = random_layers(seed, dtype)[1]
    (evidence,) = evidence_of(policy, [states])
    found_HN = policy.scores_at(evidence, EVEN)
    expected_HN = torch.tensor(reference(policy, states), dtype=torch.float64)
    # In bf16 the projection of a value is rounded to it, as everything that the model computes.
    tolerance = 1e-4 if dtype is torch.float32 else 1e-2
    # A token whose mass is the threshold's but for rounding may be guaranteed or not.
    is_close_HN = torch.isclose(found_HN, expected_HN, rtol=tolerance, atol=0.0)
    assert (~is_close_HN).sum() <= 1


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_heads_of_a_layer_or_of_all_layers_compete(policy: DefensiveKV, seed: int) -> None:
    states_L = random_layers(seed)
    scores_LHN = [reference(policy, states) for states in states_L]
    if isinstance(policy, LayerDefensiveKV):
        expected = slow.kept(scores_LHN, NUM_LAYERS * EVEN.num_slots)
    else:
        expected = [slow.kept([scores_HN], EVEN.num_slots)[0] for scores_HN in scores_LHN]
    found = kept_by(policy, states_L)
    differing = [
        set(ours) ^ set(theirs)
        for ours_H, theirs_H in zip(found, expected, strict=True)
        for ours, theirs in zip(ours_H, theirs_H, strict=True)
    ]
    # A pair whose scores are equal but for rounding may be exchanged, in one head or between two.
    assert sum(map(len, differing)) <= 2
    # With a large guaranteed mass every head may take all that its even share allows.
    if not policy.guaranteed_mass:
        assert len({len(tokens) for tokens in chain(*found)}) > 1, "heads are ragged"


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_window_stays_in_every_head(policy: DefensiveKV, seed: int) -> None:
    window = list(range(NUM_TOKENS - policy.window_size, NUM_TOKENS))
    states_L = random_layers(seed)
    for ratio in (0.1, 0.4):
        even = Budget.uniform(int(NUM_TOKENS * ratio), NUM_KV_HEADS, ratio)
        for tokens in chain(*kept_by(policy, states_L, even)):
            assert tokens[-policy.window_size :] == window
    whole = Budget.uniform(NUM_TOKENS, NUM_KV_HEADS, 1.0)
    assert kept_by(policy, states_L, whole) == [[[*range(NUM_TOKENS)]] * NUM_KV_HEADS] * NUM_LAYERS


def test_one_row_of_one_query_head_has_no_worst_case(seed: int) -> None:
    """Its maximum is its mean: with equal values, and nothing else on, the choice is SnapKV's."""
    states = random_layers(seed)[0]
    states = replace(
        states, q_QND=states.q_QND[:1], k_HND=states.k_HND[:1],
        v_HND=torch.ones(1, NUM_TOKENS, HEAD_DIM), attention=Projected(torch.ones(3, HEAD_DIM)),
    )  # fmt: skip
    plain = DefensiveKV(window_size=1, kernel_size=3, guaranteed_mass=0, floor_at_mean=False)
    budget = Budget.uniform(48, 1, RATIO)
    snapkv = SnapKV(window_size=1, kernel_size=3)
    evidence = Evidence(states, 0, 1, 5)
    evidence.capture(plain.needs() | snapkv.needs())
    assert torch.equal(plain.select(evidence, budget), snapkv.select(evidence, budget))


def test_heads_may_each_keep_their_own_best(seed: int) -> None:
    (states,) = random_layers(seed, layers=1)
    policy = DefensiveKV(window_size=8, compete="head")
    assert not policy.heads_differ
    AdaKV(policy)
    found = kept_by(policy, [states])[0]
    for head, scores_N in enumerate(reference(policy, states)):
        assert len(found[head]) == EVEN.num_slots_H[head]
        (expected,) = slow.kept([[scores_N]], EVEN.num_slots_H[head])[0]
        assert len({*expected} ^ {*found[head]}) <= 2


def test_what_scales_all_heads_of_a_layer_alike_changes_nothing(seed: int) -> None:
    """Values count by their share within the layer: neither form compares norms between layers."""
    states_L = random_layers(seed)
    attention = states_L[2].attention
    assert isinstance(attention, Projected)
    larger = [*states_L[:2], replace(states_L[2], attention=Projected(8 * attention.o_proj.weight))]
    for policy in (DefensiveKV(window_size=8), LayerDefensiveKV(window_size=8)):
        assert kept_by(policy, larger) == kept_by(policy, states_L)


def test_flatter_attention_leaves_slots_to_other_layers_in_the_layer_form_alone(seed: int) -> None:
    states_L = random_layers(seed)
    flatter = [*states_L[:2], replace(states_L[2], q_QND=0.05 * states_L[2].q_QND)]
    one, across = (policy(window_size=8) for policy in (DefensiveKV, LayerDefensiveKV))
    assert kept_by(one, flatter)[:2] == kept_by(one, states_L)[:2]
    assert kept_by(across, flatter)[:2] != kept_by(across, states_L)[:2]


@pytest.mark.parametrize(
    "values",
    [
        {"window_size": 0},
        {"kernel_size": 4},
        {"guaranteed_mass": 1.1},
        {"floor_at_mean": 1},
        {"compete": "all"},
    ],
)
def test_bad_parameters_are_refused_by_name(values: dict) -> None:
    with pytest.raises(PolicyError, match=f"layer_defensivekv: {next(iter(values))}"):
        LayerDefensiveKV(**values)


def test_ada_kv_has_nothing_to_do_behind_it() -> None:
    with pytest.raises(PolicyError, match="heads of defensivekv compete already"):
        AdaKV(DefensiveKV())


def test_prompts_and_budgets_it_cannot_work_on_are_refused() -> None:
    with pytest.raises(BudgetError, match="no more than window_size=32"):
        DefensiveKV().check(CacheShape(32, 4, 2), SlotCount(32))
    with pytest.raises(BudgetError, match="always keeps 32"):
        LayerDefensiveKV().check(CacheShape(90, 4, 2), SlotCount(31))
