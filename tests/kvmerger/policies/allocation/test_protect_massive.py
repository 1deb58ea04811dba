"""Massive tokens stay in place of the lowest-ranked, whatever ranks and whatever shares slots out behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvmerger.budget import Budget
from kvmerger.building import build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.base import PolicyError
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, LayerStates
from kvmerger.variants import VariantError, parse_policies, parse_policy_entry
from tests.fakes.random_layers import DTYPES, NUM_KV_HEADS, NUM_TOKENS, evidence_for, random_states
from tests.slow import massive as slow

FRONTS = {"snapkv": {"window_size": 8}, "knorm": {}, "h2o": {}, "tova": {}, "streaming_llm": {}}
BUDGET = Budget.uniform(19, NUM_KV_HEADS, 0.4)


def made(name: str, **params: object) -> ScoringPolicy:
    policy = build(name, params)
    assert isinstance(policy, ScoringPolicy)
    return policy


def massive_tokens(seed: int) -> set[int]:
    """Three of the tokens before the window, none of them a sink."""
    generator = torch.Generator().manual_seed(seed)
    return set((4 + torch.randperm(NUM_TOKENS - 12, generator=generator)[:3]).tolist())


def states_of(seed: int, massive: set[int], dtype: torch.dtype = torch.float32) -> LayerStates:
    generator = torch.Generator().manual_seed(seed)
    residual_NE = torch.randn(NUM_TOKENS, 8, generator=generator)
    residual_NE[list(massive), 5] = 2000.0
    return replace(random_states(seed, dtype), residual_NE=residual_NE.to(dtype))


def kept_by(policy: ScoringPolicy, evidence: Evidence, budget: Budget = BUDGET) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in policy.select(evidence, budget)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("front", FRONTS)
def test_each_takes_the_place_of_the_lowest_ranked(front: str, dtype: torch.dtype, seed: int) -> None:
    massive = massive_tokens(seed)
    policy, inner = made(f"{front}+protect_massive", **FRONTS[front]), made(front, **FRONTS[front])
    evidence = evidence_for(policy, states_of(seed, massive, dtype))
    budget = Budget(tuple(19 + head for head in range(NUM_KV_HEADS)), 0.4)
    scores = inner.scores_at(evidence, budget).tolist()
    found = kept_by(policy, evidence, budget)
    assert found == slow.protected(scores, massive, budget.num_slots_H)
    assert all(massive < kept for kept in found)
    assert tuple(map(len, found)) == budget.num_slots_H
    if front in ("snapkv", "streaming_llm"):
        always = set(range(NUM_TOKENS - 8, NUM_TOKENS)) if front == "snapkv" else set(range(4))
        assert all(always < kept for kept in found), "what the ranking protects is protected"


@pytest.mark.parametrize("front", FRONTS)
def test_without_a_massive_token_it_is_the_ranking_bit_for_bit(front: str, seed: int) -> None:
    policy, inner = made(f"{front}+protect_massive", **FRONTS[front]), made(front, **FRONTS[front])
    states = states_of(seed, set())
    evidence = evidence_for(policy, states)
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    found, expected = (it.compress(layer, evidence, BUDGET) for it in (policy, inner))
    assert found.num_slots_H == expected.num_slots_H and dict(found.counters) == dict(expected.counters)
    for ours, theirs in zip(found.tensors(), expected.tensors(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("behind", ["adakv", "chunkkv", "blocks16", "criticalkv", "keepkv"])
def test_what_stands_behind_keeps_them_too(behind: str, seed: int) -> None:
    massive = massive_tokens(seed)
    states = states_of(seed, massive)
    # As small as this, the chunks and blocks of three tokens fit into the budget.
    params = {"chunkkv": {"chunk_length": 3}, "blocks16": {"block_size": 2, "shared_by": "layer"}}.get(
        behind, {}
    )
    policy = build(f"knorm+protect_massive+{behind}", params)
    if behind == "criticalkv":
        attention = torch.nn.Module()
        attention.o_proj = torch.nn.Linear(states.q_QND.shape[0] * states.q_QND.shape[2], 8, bias=False)
        states = replace(states, attention=attention.requires_grad_(False))
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    kept = policy.compress(layer, evidence_for(policy, states), BUDGET)
    positions = kept.position_S.split(list(kept.num_slots_H))
    assert all(massive <= set(of_head.tolist()) for of_head in positions)


def test_the_bound_is_a_parameter(seed: int) -> None:
    states = states_of(seed, {7})
    evidence = evidence_for(made("knorm+protect_massive"), states)
    # The median of a normal number's magnitude is 0.67: 2,000 are some 3,000 medians.
    for times_median, is_protected in ((1e3, True), (1e4, False), (1e-6, True)):
        policy = made("knorm+protect_massive", times_median=times_median)
        assert bool(policy.scores(evidence)[:, 7].isposinf().all()) is is_protected


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("kvmerger+protect_massive", {}, "put a ranking in front"),
        ("simlayerkv+protect_massive", {}, "put a ranking in front"),
        ("snapkv+adakv+protect_massive", {}, "put a ranking in front"),
        ("snapkv+protect_massive", {"times_median": 0}, "times_median must be positive"),
    ],
)
def test_what_it_cannot_work_with_is_refused(name: str, params: dict, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        build(name, params)


@pytest.mark.parametrize(
    ("name", "policy", "label"),
    [
        ("snapkv", "snapkv+protect_massive", "snapkv+protect_massive@0.5"),
        ("snapkv+adakv", "snapkv+protect_massive+adakv", "snapkv+protect_massive+adakv@0.5"),
        ("adakv_snapkv", "snapkv+protect_massive+adakv", "snapkv+protect_massive+adakv@0.5"),
        ("h2o+keepkv+int4", "h2o+protect_massive+keepkv+int4", "h2o+protect_massive+keepkv@0.5+int4"),
        ("snapkv+protect_massive", "snapkv+protect_massive", "snapkv+protect_massive@0.5"),
        ("meda", "h2o+protect_massive+meda", "h2o+protect_massive+meda@0.5"),
        ("my_module:Mine", "my_module:Mine+protect_massive", "Mine+protect_massive@0.5"),
    ],
)
def test_the_key_is_the_part_behind_the_ranking(name: str, policy: str, label: str) -> None:
    (spec,) = parse_policy_entry({"name": name, "budget": 0.5, "protect_massive": True})
    assert (spec.policy, spec.label, spec.params) == (policy, label, ())
    (spelt,) = parse_policy_entry(label.replace("Mine", "my_module:Mine"))
    assert spelt == spec


def test_false_is_as_if_it_were_not_there_and_true_is_another_variant() -> None:
    entry = {"name": "snapkv", "budget": 0.5, "window_size": 16}
    without, off, on = parse_policies(
        [entry, {**entry, "protect_massive": False, "label": "off"}, {**entry, "protect_massive": True}]
    )
    assert off.canonical() == without.canonical() != on.canonical()
    assert on.params == (("window_size", 16),)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "snapkv", "budget": 0.5, "protect_massive": "yes"}, "true or false, got 'yes'"),
        ({"name": "snapkv", "budget": 0.5, "protect_massive": 1}, "true or false, got 1"),
        ({"name": "snapkv+protect_massive@0.5", "protect_massive": False}, "leave one of them out"),
        ({"name": "full", "protect_massive": True}, "takes no budget and no parameters"),
        ({"name": "snapkv", "protect_massive": True}, "needs a budget"),
    ],
)
def test_a_key_without_meaning_is_refused(entry: dict, message: str) -> None:
    with pytest.raises(VariantError, match=message):
        parse_policy_entry(entry)
