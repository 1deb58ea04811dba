"""Half by the ranking, half by the product with what a value moves; heads keep what the ranking gives them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kvmerger.budget import Budget
from kvmerger.building import build
from kvmerger.policies.base import PolicyError
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill import output_norms
from kvmerger.prefill.evidence import Evidence, LayerStates
from tests.fakes.planted_layers import HEAD_DIM, NUM_HEADS, NUM_QUERY_HEADS, NUM_TOKENS, planted_states
from tests.slow.allocation import slow_critical, slow_output_norms

HIDDEN_SIZE = 20


class Attention(nn.Module):
    """An output projection."""

    def __init__(self, weight_EX: torch.Tensor) -> None:
        super().__init__()
        self.o_proj = nn.Linear(weight_EX.shape[1], weight_EX.shape[0], bias=False)
        self.o_proj.weight = nn.Parameter(weight_EX, requires_grad=False)


def states_of(seed: int, weight_EX: torch.Tensor | None = None) -> LayerStates:
    states = planted_states(seed, torch.float32)
    if weight_EX is None:
        generator = torch.Generator().manual_seed(seed)
        weight_EX = torch.randn(HIDDEN_SIZE, NUM_QUERY_HEADS * HEAD_DIM, generator=generator)
    attention = Attention(weight_EX)
    return replace(
        states, hidden_NE=torch.zeros(NUM_TOKENS, HIDDEN_SIZE), attention=attention, rotary=nn.Identity()
    )


def ranked(policy: ScoringPolicy, states: LayerStates) -> Evidence:
    evidence = Evidence(states, 3, 8, prompt_seed=7)
    evidence.capture(policy.needs())
    return evidence


def made(name: str, **params: object) -> ScoringPolicy:
    policy = build(name, params)
    assert isinstance(policy, ScoringPolicy)
    return policy


@pytest.mark.parametrize(
    "params", [{}, {"epsilon": 0.01, "first_stage_ratio": 0.3}, {"first_stage_ratio": 0}], ids=str
)
@pytest.mark.parametrize("front", ["snapkv", "snapkv+adakv", "observed_attention"])
def test_equals_loops_over_tokens(front: str, params: dict, seed: int) -> None:
    window = {"window_size": 8} if "snapkv" in front else {}
    policy = made(f"{front}+criticalkv", **params, **window)
    states, inner = states_of(seed), made(front, **window)
    evidence, budget = ranked(policy, states), Budget.uniform(37, NUM_HEADS, 0.4)
    is_kept_HN = policy.select(evidence, budget)
    slots = inner.select(evidence, budget).sum(dim=1).tolist()
    norms = slow_output_norms(states.v_HND, states.attention.o_proj.weight)
    scores = inner.scores_at(evidence, budget).tolist()
    expected = slow_critical(
        scores, norms, slots, params.get("epsilon", 1e-4), params.get("first_stage_ratio", 0.5)
    )
    assert [set(row.nonzero().flatten().tolist()) for row in is_kept_HN] == expected
    assert is_kept_HN.sum(dim=1).tolist() == slots


@pytest.mark.parametrize("order", [1, 2])
def test_norms_do_not_depend_on_their_blocks(order: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    states = states_of(seed)
    assert states.attention is not None
    whole_QN = output_norms.output_norms(states.v_HND, states.attention, order)
    monkeypatch.setattr(output_norms, "_MOST_PROJECTED", NUM_QUERY_HEADS * HIDDEN_SIZE * 7)
    torch.testing.assert_close(output_norms.output_norms(states.v_HND, states.attention, order), whole_QN)
    weight_QED = states.attention.o_proj.weight.unflatten(1, (NUM_QUERY_HEADS, HEAD_DIM)).transpose(0, 1)
    out_QNE = states.v_HND.repeat_interleave(2, dim=0).double() @ weight_QED.double().mT
    torch.testing.assert_close(whole_QN.double(), out_QNE.norm(p=order, dim=2), atol=1e-4, rtol=1e-4)


def test_where_every_value_moves_as_much_it_is_the_ranking(seed: int) -> None:
    states = states_of(seed)
    states = replace(states, v_HND=states.v_HND[:, :1].expand(-1, NUM_TOKENS, -1).contiguous())
    policy, inner = made("observed_attention+criticalkv", epsilon=0), made("observed_attention")
    evidence, budget = ranked(policy, states), Budget.uniform(30, NUM_HEADS, 0.3)
    assert torch.equal(policy.select(evidence, budget), inner.select(evidence, budget))


def test_a_value_of_no_norm_takes_no_protection_away(seed: int) -> None:
    policy = made("snapkv+criticalkv", window_size=8)
    states = states_of(seed)
    evidence = ranked(policy, replace(states, v_HND=torch.zeros_like(states.v_HND)))
    scores_HN = policy.scores_at(evidence, Budget.uniform(20, NUM_HEADS, 0.2))
    assert scores_HN[:, -8:].isinf().all() and not scores_HN.isnan().any()


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("kvmerger+criticalkv", {}, "ranks tokens by scores"),
        ("snapkv+criticalkv", {"epsilon": -1}, "epsilon must be"),
        ("snapkv+criticalkv", {"first_stage_ratio": 2}, "first_stage_ratio is a share"),
    ],
)
def test_what_it_cannot_work_with_is_refused(name: str, params: dict, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        build(name, params)
