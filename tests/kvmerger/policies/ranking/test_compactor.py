"""Compactor against a reference written apart, and the sketch that depends on prompt and layer alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kvmerger.budget import Budget, BudgetError, SlotCount
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.compactor import Compactor, sketch
from kvmerger.prefill.evidence import Evidence, LayerStates
from tests.fakes.random_layers import HEAD_DIM, NUM_KV_HEADS, NUM_TOKENS, random_states
from tests.slow.ranking import compactor as slow

HIDDEN_SIZE = 20


class Keys(nn.Module):
    """What evidence reads of an attention module."""

    def __init__(self, weight_XE: torch.Tensor) -> None:
        super().__init__()
        self.k_proj = nn.Linear(weight_XE.shape[1], weight_XE.shape[0], bias=False).requires_grad_(False)
        self.k_proj.weight = nn.Parameter(weight_XE, requires_grad=False)


def layer(seed: int, dtype: torch.dtype = torch.float32, num_tokens: int = NUM_TOKENS) -> LayerStates:
    states = random_states(seed, dtype, num_tokens)
    generator = torch.Generator().manual_seed(seed + 1)
    hidden_NE = torch.randn(num_tokens, HIDDEN_SIZE, generator=generator) + 2
    weight_XE = torch.randn(NUM_KV_HEADS * HEAD_DIM, HIDDEN_SIZE, generator=generator)
    return LayerStates(
        states.q_QND, states.k_HND, states.v_HND, 0.5, hidden_NE.to(dtype), Keys(weight_XE.to(dtype)), nn.Identity()
    )  # fmt: skip


def evidence_of(policy: Compactor, states: LayerStates, layer_index: int = 1) -> Evidence:
    evidence = Evidence(states, layer_index, 4, prompt_seed=5)
    evidence.capture(policy.needs())
    return evidence


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "policy",
    [
        Compactor(chunk_size=16),
        Compactor(chunk_size=27, sink_size_start=0, sink_size_end=3, sketch_dimension=5),
        Compactor(chunk_size=12, sink_size_end=0, blending=0.9),
        Compactor(),
    ],
    ids=str,
)
def test_scores_follow_the_formula(policy: Compactor, dtype: torch.dtype, seed: int) -> None:
    states = layer(seed, dtype)
    evidence = evidence_of(policy, states)
    assert isinstance(states.attention, Keys) and states.hidden_NE is not None
    before_HND = states.attention.k_proj(states.hidden_NE).view(NUM_TOKENS, -1, HEAD_DIM).transpose(0, 1)
    x_HMK = before_HND[:, policy.sink_size_start : NUM_TOKENS - policy.sink_size_end].double()
    if policy.sketch_dimension < HEAD_DIM:
        x_HMK = x_HMK @ sketch(evidence.draw_seed, NUM_KV_HEADS, HEAD_DIM, policy.sketch_dimension).double()
    for kept_ratio in (0.25, 0.6):
        expected_HN = slow.scores(
            (states.q_QND, states.k_HND, states.v_HND), x_HMK, (policy.sink_size_start, policy.sink_size_end),
            policy.chunk_size, 1 - kept_ratio if policy.blending is None else policy.blending,
        )  # fmt: skip
        budget = Budget.uniform(int(NUM_TOKENS * kept_ratio), NUM_KV_HEADS, kept_ratio)
        found_HN = policy.scores_at(evidence, budget).double()
        torch.testing.assert_close(
            found_HN, torch.tensor(expected_HN, dtype=torch.float64), atol=1e-4, rtol=1e-4
        )
        is_kept_HN = policy.select(evidence, budget)
        assert is_kept_HN.sum(dim=1).tolist() == list(budget.num_slots_H)
        ends = [*range(policy.sink_size_start), *range(NUM_TOKENS - policy.sink_size_end, NUM_TOKENS)]
        assert is_kept_HN[:, ends].all()


def test_a_key_that_nobody_resembles_has_all_the_leverage(seed: int) -> None:
    """And leverages of a head, from 0 to 1, add up to no more than the numbers of a key."""
    states = layer(seed)
    hidden_NE = torch.zeros(NUM_TOKENS, HIDDEN_SIZE)
    hidden_NE[30] = 100 * torch.ones(HIDDEN_SIZE)
    policy = Compactor(blending=1.0)
    lone = LayerStates(*(getattr(states, name) for name in ("q_QND", "k_HND", "v_HND", "scaling")), hidden_NE,
                       states.attention, states.rotary)  # fmt: skip
    (need,) = (need for need in policy.needs() if need.name == "key_leverage")
    leverage_HM = evidence_of(policy, lone).get(need)
    assert leverage_HM.argmax(dim=1).tolist() == [30 - policy.sink_size_start] * NUM_KV_HEADS
    for x_MK in torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(seed)).double():
        found = slow.leverages(x_MK)
        assert min(found) >= 0 and max(found) <= 1 and sum(found) <= 6


def test_with_one_chunk_and_equal_queries_and_keys_only_values_count(seed: int) -> None:
    states = layer(seed)
    alike = LayerStates(
        torch.zeros_like(states.q_QND), states.k_HND, states.v_HND, 0.5, states.hidden_NE, states.attention, states.rotary
    )  # fmt: skip
    policy = Compactor(chunk_size=NUM_TOKENS, blending=0.0, sink_size_start=0, sink_size_end=0)
    norm_HN = states.v_HND.norm(dim=2)
    pooled_HN = torch.nn.functional.avg_pool1d(norm_HN, 3, stride=1, padding=1)
    expected_HN = (pooled_HN - pooled_HN.mean()) / pooled_HN.std()
    torch.testing.assert_close(policy.scores(evidence_of(policy, alike)), expected_HN, atol=1e-4, rtol=1e-4)


def test_the_sketch_is_of_prompt_and_layer(seed: int) -> None:
    policy, states = Compactor(sketch_dimension=4), layer(seed)
    first = policy.scores(evidence_of(policy, states))
    assert torch.equal(policy.scores(evidence_of(policy, states)), first)
    assert not torch.equal(policy.scores(evidence_of(policy, states, layer_index=2)), first)
    whole = Compactor(sketch_dimension=HEAD_DIM)
    same = [whole.scores(evidence_of(whole, states, layer_index=index)) for index in (1, 2)]
    assert torch.equal(*same)


def test_prompts_and_budgets_it_cannot_work_on_are_refused() -> None:
    with pytest.raises(BudgetError, match="no more than sink_size_start=8 and sink_size_end=4"):
        Compactor().check(CacheShape(12, 4, 2), SlotCount(12))
    with pytest.raises(BudgetError, match="always keeps 12"):
        Compactor().check(CacheShape(90, 4, 2), SlotCount(11))


@pytest.mark.parametrize(
    "values",
    [
        {"sink_size_start": -1},
        {"sink_size_end": 1.5},
        {"chunk_size": 0},
        {"sketch_dimension": 0},
        {"blending": 2},
    ],
)
def test_bad_parameters_are_refused_by_name(values: dict) -> None:
    with pytest.raises(PolicyError, match=next(iter(values))):
        Compactor(**values)
