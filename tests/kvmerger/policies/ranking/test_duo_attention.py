"""DuoAttention against a reference written apart, on models of every kind, and its two ends."""

from __future__ import annotations

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, SlotCount
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.duo_attention import DuoAttention
from kvmerger.policies.ranking.streaming_llm import StreamingLLM
from kvmerger.prefill.evidence import Evidence, LayerStates, Need
from kvmerger.prefill.prefill import Prefilled, prefill
from kvmerger.variants import parse_policy_entry
from tests.fakes.tiny_models import VOCAB_SIZE, tiny_model
from tests.slow.ranking import duo_attention as slow

NUM_TOKENS, NUM_HEADS, NUM_LAYERS, HEAD_DIM = 60, 2, 3, 16
POLICY = DuoAttention(sink_size=3, recent_size=9, num_positions=40)
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64},
}


def prompt(seed: int) -> list[int]:
    return torch.randint(VOCAB_SIZE, (NUM_TOKENS,), generator=torch.Generator().manual_seed(seed)).tolist()


def prefilled(seed: int, policy: DuoAttention = POLICY) -> Prefilled:
    return prefill(tiny_model(seed, num_layers=NUM_LAYERS).ours, prompt(seed), policy.needs())


def scores_of(found: Prefilled, policy: DuoAttention = POLICY) -> list[list[float]]:
    need = Need("retrieval_scores", (policy.num_positions,))
    return [evidence.get(need).tolist() for evidence in found.evidence]


def even(num_slots: int) -> list[Budget]:
    return [Budget.uniform(num_slots, NUM_HEADS, num_slots / NUM_TOKENS)] * NUM_LAYERS


def kept_by(policy: DuoAttention, found: Prefilled, num_slots: int) -> list[list[list[int]]]:
    budget_L = policy.allocate(even(num_slots), found.evidence)
    kept_L = [
        policy.compress(*of_layer) for of_layer in zip(found.layers, found.evidence, budget_L, strict=True)
    ]
    return [[part.tolist() for part in kept.position_S.split(kept.num_slots_H)] for kept in kept_L]


@pytest.mark.parametrize("rope", list(ROPES))
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_scores_follow_the_formula(model_type: str, rope: str, seed: int) -> None:
    """With queries and keys from a plain model's hidden states."""
    model = tiny_model(seed, model_type=model_type, num_layers=NUM_LAYERS, rope_parameters=dict(ROPES[rope]))
    ids = prompt(seed)
    found = scores_of(prefill(model.ours, ids, POLICY.needs()))
    rotary = model.plain.model.rotary_emb
    turns = [
        slow.rotation(rotary.inv_freq.tolist(), rotary.attention_scaling, position)
        for position in range(POLICY.num_positions)
    ]
    with torch.inference_mode():
        hidden_L1NE = model.plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for index, layer in enumerate(model.plain.model.layers):
            attention, hidden_NE = layer.self_attn, layer.input_layernorm(hidden_L1NE[index])[0]
            q_NQD, k_NHD = (
                project(hidden_NE).unflatten(1, (-1, HEAD_DIM))
                for project in (attention.q_proj, attention.k_proj)
            )
            if model_type == "qwen3":
                q_NQD, k_NHD = attention.q_norm(q_NQD), attention.k_norm(k_NHD)
            expected = slow.retrieval_scores(
                q_NQD.transpose(0, 1), k_NHD.transpose(0, 1), turns, attention.scaling
            )
            assert found[index] == pytest.approx(expected, rel=1e-4)
            assert all(1 / POLICY.num_positions <= score <= 1 for score in found[index])


@pytest.mark.parametrize("num_slots", [5, 12, 13, 30, 59, 60])
def test_heads_that_look_farthest_keep_everything(num_slots: int, seed: int) -> None:
    found = prefilled(seed)
    total = num_slots * NUM_HEADS * NUM_LAYERS
    expected = slow.slots(scores_of(found), total, NUM_TOKENS, POLICY.sink_size + POLICY.recent_size)
    sinks = POLICY.sink_size
    assert kept_by(POLICY, found, num_slots) == [
        [[*range(sinks), *range(NUM_TOKENS - count + sinks, NUM_TOKENS)] for count in of_layer]
        for of_layer in expected
    ]
    budget_L = POLICY.allocate(even(num_slots), found.evidence)
    retrieving = sum(
        POLICY.compress(*of_layer).counters["num_retrieval_heads"]
        for of_layer in zip(found.layers, found.evidence, budget_L, strict=True)
    )
    assert retrieving == sum(count == NUM_TOKENS for of_layer in expected for count in of_layer)


def test_where_no_head_retrieves_it_is_streaming_llm(seed: int) -> None:
    found = prefilled(seed)
    for num_slots in (8, POLICY.sink_size + POLICY.recent_size):
        budget_L = even(num_slots)
        for evidence, budget, ours in zip(
            found.evidence, budget_L, POLICY.allocate(budget_L, found.evidence), strict=True
        ):
            streaming = StreamingLLM(POLICY.sink_size).select(evidence, budget)
            assert torch.equal(POLICY.select(evidence, ours), streaming)


def test_a_head_without_direction_looks_nowhere_in_particular(seed: int) -> None:
    """A mean query of 0 attends to all positions alike: just above the middle."""
    plain = tiny_model(seed, num_layers=1).plain.model
    x_HND = torch.zeros(NUM_HEADS, NUM_TOKENS, HEAD_DIM)
    states = LayerStates(
        torch.zeros(4, NUM_TOKENS, HEAD_DIM), x_HND, x_HND, 0.25, torch.zeros(NUM_TOKENS, 64),
        plain.layers[0].self_attn, plain.rotary_emb,
    )  # fmt: skip
    evidence = Evidence(states, 0, 1, prompt_seed=5)
    with torch.inference_mode():
        evidence.capture(POLICY.needs())
    (need,) = POLICY.needs()
    assert evidence.get(need).tolist() == pytest.approx([(1 + 1 / POLICY.num_positions) / 2] * NUM_HEADS)


def test_kvpress_key_is_understood() -> None:
    ours, theirs = (
        parse_policy_entry({"name": name, "budget": 0.5})[0].canonical()
        for name in ("duo_attention", "duo_attention_on_the_fly")
    )
    assert ours == theirs


def test_budgets_it_cannot_meet_and_bad_parameters_are_refused() -> None:
    with pytest.raises(BudgetError, match="always keeps 129"):
        DuoAttention().check(CacheShape(500, 4, 2), SlotCount(128))
    for name, value in (("sink_size", -1), ("recent_size", 0), ("num_positions", 1)):
        with pytest.raises(PolicyError, match=f"duo_attention: {name}"):
            DuoAttention(**{name: value})
