"""Expected attention against whole rotation matrices, against drawn queries, and on models of every kind.

Shapes: N tokens, E hidden size, D head size.
"""

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from kvmerger.budget import Budget, BudgetError, SlotCount
from kvmerger.policies.allocation.adakv import AdaKV
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.expected_attention import ExpectedAttention
from kvmerger.prefill.evidence import LayerStates
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import parse_policy_entry
from tests.fakes.random_layers import assert_scores_and_choice, evidence_for, kept_positions
from tests.fakes.tiny_models import VOCAB_SIZE, tiny_model

NUM_TOKENS, HIDDEN_SIZE, NUM_QUERY_HEADS, NUM_KV_HEADS, HEAD_DIM = 90, 24, 4, 2, 8
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64},
}  # fmt: skip


class Projection(nn.Module):
    """What evidence reads of an attention module."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.q_proj = nn.Linear(weight.shape[1], weight.shape[0], bias=False).requires_grad_(False)
        self.q_proj.weight.copy_(weight)
        self.to(weight.dtype)


def rotary_of(rope: dict[str, Any], head_dim: int = HEAD_DIM) -> LlamaRotaryEmbedding:
    return LlamaRotaryEmbedding(
        LlamaConfig(head_dim=head_dim, rope_parameters=dict(rope), max_position_embeddings=4096)
    )


def random_states(
    seed: int, dtype: torch.dtype = torch.float32, rope: str = "default", scale: float = 0.3
) -> LayerStates:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    hidden_NE = scale * draw(NUM_TOKENS, HIDDEN_SIZE) + scale * draw(HIDDEN_SIZE)
    weight = draw(NUM_QUERY_HEADS * HEAD_DIM, HIDDEN_SIZE)
    k_HND, v_HND = draw(NUM_KV_HEADS, NUM_TOKENS, HEAD_DIM), draw(NUM_KV_HEADS, NUM_TOKENS, HEAD_DIM)
    return LayerStates(
        draw(NUM_QUERY_HEADS, NUM_TOKENS, HEAD_DIM).to(dtype), k_HND.to(dtype), v_HND.to(dtype), HEAD_DIM**-0.5,
        hidden_NE.to(dtype), Projection(weight.to(dtype)), rotary_of(ROPES[rope]),
    )  # fmt: skip


def mean_rotation(rotary: Any, start: int, num_positions: int, head_dim: int) -> torch.Tensor:
    """The average of whole rotation matrices (D, D), pair by pair of channels, in double precision."""
    total_DD = torch.zeros(head_dim, head_dim, dtype=torch.float64)
    half = head_dim // 2
    for position in range(start, start + num_positions):
        for pair, frequency in enumerate(rotary.inv_freq.tolist()):
            cosine = rotary.attention_scaling * math.cos(position * frequency)
            sine = rotary.attention_scaling * math.sin(position * frequency)
            total_DD[pair, pair] += cosine
            total_DD[pair + half, pair + half] += cosine
            total_DD[pair, pair + half] -= sine
            total_DD[pair + half, pair] += sine
    return total_DD / num_positions


def expected_scores(
    q_QND: torch.Tensor, states: LayerStates, policy: ExpectedAttention, rotary: Any
) -> list[list[float]]:
    """The formula, key by key; ``q_QND`` are the queries before RoPE of all tokens."""
    num_heads, num_tokens, head_dim = states.k_HND.shape
    rotation_DD = mean_rotation(rotary, num_tokens, policy.n_future_positions, head_dim)
    group = len(q_QND) // num_heads
    result = []
    for head in range(num_heads):
        behind = range(policy.n_sink, num_tokens)
        totals = dict.fromkeys(behind, 0.0)
        for query_head in range(head * group, (head + 1) * group):
            q_MD = q_QND[query_head, policy.n_sink :].double()
            mean_D = rotation_DD @ (sum(q_MD) / len(q_MD))
            rotated = [rotation_DD @ q_D for q_D in q_MD]
            cov_DD = sum(torch.outer(q_D - mean_D, q_D - mean_D) for q_D in rotated) / len(rotated)
            logits = []
            for token in behind:
                k_D = states.k_HND[head, token].double()
                spread = float(k_D @ cov_DD @ k_D) if policy.use_covariance else 0.0
                logits.append(float(k_D @ mean_D) / math.sqrt(head_dim) + spread / (2 * head_dim))
            top = max(logits)
            exps = [math.exp(logit - top) for logit in logits]
            for token, exp in zip(behind, exps, strict=True):
                totals[token] += exp / sum(exps) / group
        if policy.use_vnorm:
            totals = {
                token: (value + policy.epsilon) * float(states.v_HND[head, token].double().norm())
                for token, value in totals.items()
            }
        result.append([math.inf] * policy.n_sink + list(totals.values()))
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "policy",
    [
        ExpectedAttention(),
        ExpectedAttention(n_future_positions=7, n_sink=0),
        ExpectedAttention(use_covariance=False),
        ExpectedAttention(use_vnorm=False),
        ExpectedAttention(epsilon=0.01),
    ],
    ids=str,
)
def test_scores_follow_the_formula(policy: ExpectedAttention, dtype: torch.dtype, seed: int) -> None:
    states = random_states(seed, dtype)
    q_QND = (
        states.attention.q_proj(states.hidden_NE).view(NUM_TOKENS, NUM_QUERY_HEADS, HEAD_DIM).transpose(0, 1)
    )
    expected = expected_scores(q_QND, states, policy, states.rotary)
    assert_scores_and_choice(policy, states, expected, tolerance=1e-4)


@pytest.mark.parametrize("rope", list(ROPES))
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_models_give_queries_and_rotations_as_they_use_them(model_type: str, rope: str, seed: int) -> None:
    """Queries from a plain model's hidden states; keys rotated with matrices of our own give the cache's keys."""
    model = tiny_model(seed, model_type=model_type, num_layers=3, rope_parameters=dict(ROPES[rope]))
    ids = torch.randint(VOCAB_SIZE, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    policy = ExpectedAttention(n_future_positions=20)
    prefilled = prefill(model.ours, ids, policy.needs())
    with torch.inference_mode():
        hidden_L1NE = model.plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for index, layer in enumerate(model.plain.model.layers):
        attention, cached = layer.self_attn, prefilled.layers[index]
        with torch.inference_mode():
            hidden_NE = layer.input_layernorm(hidden_L1NE[index])[0]
            q_NQD = attention.q_proj(hidden_NE).view(len(ids), 4, 16)
            k_NHD = attention.k_proj(hidden_NE).view(len(ids), 2, 16)
            if model_type == "qwen3":
                q_NQD, k_NHD = attention.q_norm(q_NQD), attention.k_norm(k_NHD)
        rotary = model.plain.model.rotary_emb
        for token in (0, 1, 39):
            turned_HD = k_NHD[token].double() @ mean_rotation(rotary, token, 1, 16).T
            torch.testing.assert_close(cached.k_HND[:, token].double(), turned_HD, atol=1e-3, rtol=1e-3)
        states = LayerStates(torch.empty(0), cached.k_HND, cached.v_HND, 0.25)
        expected = torch.tensor(expected_scores(q_NQD.transpose(0, 1), states, policy, rotary))
        found = policy.scores(prefilled.evidence[index])
        torch.testing.assert_close(found, expected.float(), atol=1e-3, rtol=1e-2)


def test_it_is_the_mean_attention_of_queries_drawn_from_the_gaussian(seed: int) -> None:
    """With one future position: the share of E[exp(q·k/√d)], for q drawn, rotated and exponentiated one by one."""
    states = random_states(seed, scale=0.1)
    policy = ExpectedAttention(n_future_positions=1, n_sink=0, use_vnorm=False)
    rotation_DD = mean_rotation(states.rotary, NUM_TOKENS, 1, HEAD_DIM)
    q_QND = (
        states.attention.q_proj(states.hidden_NE).view(NUM_TOKENS, NUM_QUERY_HEADS, HEAD_DIM).transpose(0, 1)
    )
    found_HN = policy.scores(evidence_for(policy, states)).double()
    generator = torch.Generator().manual_seed(seed)
    for head in range(NUM_KV_HEADS):
        shares = []
        for q_ND in q_QND[2 * head : 2 * head + 2].double():
            root_DD = torch.linalg.cholesky(torch.cov(q_ND.T, correction=0))
            drawn_XD = (
                q_ND.mean(dim=0) + torch.randn(200_000, HEAD_DIM, generator=generator).double() @ root_DD.T
            )
            weight_XN = (
                (drawn_XD @ rotation_DD.T) @ states.k_HND[head].double().T / math.sqrt(HEAD_DIM)
            ).exp()
            shares.append(weight_XN.mean(dim=0) / weight_XN.mean(dim=0).sum())
        torch.testing.assert_close(found_HN[head], sum(shares) / 2, rtol=0.05, atol=0.0)


def test_the_first_tokens_stay_and_do_not_count(seed: int) -> None:
    states, policy = random_states(seed), ExpectedAttention()
    before = policy.scores(evidence_for(policy, states))
    states.hidden_NE[:4] = 1000.0
    assert torch.equal(policy.scores(evidence_for(policy, states)), before)
    for kept in kept_positions(policy, states, Budget((5, 9), 0.1)):
        assert kept[:4] == [0, 1, 2, 3]


def test_only_scores_are_kept(seed: int) -> None:
    states, policy = random_states(seed), ExpectedAttention()
    (need,) = policy.needs()
    evidence = evidence_for(policy, states)
    assert evidence.get(need).numel() == NUM_KV_HEADS * (NUM_TOKENS - 4)
    held = evidence._states
    assert (held.hidden_NE, held.attention) == (None, None)


def test_kvpress_key_with_adakv_is_understood(seed: int) -> None:
    ours, theirs = (
        parse_policy_entry({"name": name, "budget": 0.5})[0].canonical()
        for name in ("expected_attention+adakv", "adakv_expected_attention")
    )
    assert ours == theirs
    kept = kept_positions(AdaKV(ExpectedAttention()), random_states(seed), Budget.uniform(30, 2, 1 / 3))
    assert sum(map(len, kept)) == 60


def test_prompts_and_budgets_it_cannot_work_on_are_refused() -> None:
    with pytest.raises(BudgetError, match="no more than n_sink=4"):
        ExpectedAttention().check(CacheShape(4, 4, 2), SlotCount(4))
    with pytest.raises(BudgetError, match="always keeps 4"):
        ExpectedAttention().check(CacheShape(90, 4, 2), SlotCount(3))


@pytest.mark.parametrize(
    "values",
    [
        {"n_future_positions": 0},
        {"n_sink": -1},
        {"use_covariance": 1},
        {"use_vnorm": None},
        {"epsilon": -0.1},
        {"epsilon": float("nan")},
    ],
)
def test_bad_parameters_are_refused_by_name(values: dict) -> None:
    with pytest.raises(PolicyError, match=next(iter(values))):
        ExpectedAttention(**values)
