"""ReFreeKV against a reference written apart, in the text's settings and the script's, and where it keeps what."""

from __future__ import annotations

import pytest
import torch

from kvmerger.budget import Budget
from kvmerger.building import Variant, build, build_variant
from kvmerger.contract.layers import NUM_TOKENS as CONTRACT_TOKENS
from kvmerger.contract.layers import random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.policies.base import PolicyError
from kvmerger.policies.outcomes.refreekv import ReFreeKV
from kvmerger.prefill.evidence import Evidence, window_attention
from kvmerger.variants import parse_policy_entry
from tests.fakes.random_layers import (
    DTYPES,
    NUM_KV_HEADS,
    NUM_QUERY_HEADS,
    NUM_TOKENS,
    attention_matrix,
    evidence_for,
    kept_positions,
    random_states,
)
from tests.slow.outcomes import refreekv as slow

NONE = Budget.uniform(NUM_TOKENS, NUM_KV_HEADS, 1.0)
GROUP = NUM_QUERY_HEADS // NUM_KV_HEADS
RECENT_FIRST = list(range(NUM_TOKENS - 1, 3, -1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_many_recent_tokens_as_the_last_query_needs(dtype: torch.dtype, seed: int) -> None:
    states = random_states(seed, dtype)
    last_rows = [of_head[-1] for of_head in attention_matrix(states)]
    lengths = []
    for threshold in (0.9, 0.3, 0.05, 0.01, 1e-5):
        expected = slow.kept(last_rows, [RECENT_FIRST] * NUM_KV_HEADS, threshold)
        assert kept_positions(ReFreeKV(threshold, whole_layers=0), states) == expected
        lengths.append(len(expected[0]))
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
    assert len(kept_positions(ReFreeKV(0, whole_layers=0), states)[0]) == NUM_TOKENS


def test_by_attention_every_head_has_its_own_tokens_and_as_many(seed: int) -> None:
    states = random_states(seed)
    matrix = torch.tensor(attention_matrix(states), dtype=torch.float64)
    window_HN = matrix[:, -8:].mean(dim=1).view(NUM_KV_HEADS, GROUP, -1).mean(dim=1)[:, :-8]
    orders = [sorted(range(NUM_TOKENS - 8), key=lambda token: -row[token]) for row in window_HN.tolist()]
    for threshold in (0.5, 0.05):
        policy = ReFreeKV(threshold, whole_layers=0, ranked_by="attention")
        expected = slow.kept(matrix[:, -1].tolist(), orders, threshold)
        assert kept_positions(policy, states) == expected
        assert expected[0] != expected[1] and len(expected[0]) == len(expected[1])
    assert ReFreeKV().heads_agree and not ReFreeKV(ranked_by="attention").heads_agree


def evidence_with(rows: list[list[float]], policy: ReFreeKV, seed: int) -> Evidence:
    evidence = evidence_for(policy, random_states(seed))
    evidence.put(window_attention(1), torch.tensor(rows))
    return evidence


@pytest.mark.parametrize("distance", [0, 7, NUM_TOKENS - 5])
def test_the_walk_ends_at_the_one_token_that_is_looked_at(distance: int, seed: int) -> None:
    row = [0.0] * NUM_TOKENS
    # Sinks stand outside: with them inside the first step would be the last.
    row[0], row[-1 - distance] = 0.9, 0.1
    policy = ReFreeKV(whole_layers=0)
    is_kept_HN = policy.select(evidence_with([row] * NUM_QUERY_HEADS, policy, seed), NONE)
    expected = [0, 1, 2, 3, *range(NUM_TOKENS - 1 - distance, NUM_TOKENS)]
    assert [row_N.nonzero()[:, 0].tolist() for row_N in is_kept_HN] == [expected] * NUM_KV_HEADS


def test_heads_are_averaged_before_the_count(seed: int) -> None:
    """By itself the far head would need all tokens; with three near ones half of the norm is reached at once."""
    near, far = [0.0] * NUM_TOKENS, [0.0] * NUM_TOKENS
    near[-1], far[4] = 1.0, 1.0
    policy = ReFreeKV(0.5, whole_layers=0)
    is_kept_HN = policy.select(evidence_with([near, near, near, far], policy, seed), NONE)
    assert is_kept_HN.sum(dim=1).tolist() == [5] * NUM_KV_HEADS
    strict = ReFreeKV(0.2, whole_layers=0)
    assert strict.select(evidence_with([near, near, near, far], strict, seed), NONE).all()


def test_first_layers_and_short_prompts_are_kept_whole(seed: int) -> None:
    variant = build_variant(parse_policy_entry({"name": "refreekv", "threshold": 0.3})[0])
    prefilled = random_prefill(seed, torch.float32, variant.policy)
    kept = compress_all(prefilled, [variant]).done["refreekv"].prefix
    slots = [layer.num_slots_H[0] for layer in kept]
    assert slots[:2] == [CONTRACT_TOKENS] * 2 and all(4 < it < CONTRACT_TOKENS for it in slots[2:])
    states = random_states(seed, num_tokens=7)
    assert kept_positions(ReFreeKV(0.9, 0, n_initial=7), states) == [list(range(7))] * NUM_KV_HEADS
    assert kept_positions(ReFreeKV(0.9, 0, "attention"), states) == [list(range(7))] * NUM_KV_HEADS


@pytest.mark.parametrize("ranked_by", ["recency", "attention"])
def test_layers_of_a_stack_are_counted_apart(ranked_by: str, seed: int) -> None:
    policy = ReFreeKV(0.3, whole_layers=3, ranked_by=ranked_by)
    prefilled = random_prefill(seed, torch.float32, policy)
    kept_L = compress_all(prefilled, [Variant("tried", policy, None)]).done["tried"].prefix
    whole = Budget.uniform(CONTRACT_TOKENS, NUM_KV_HEADS, 1.0)
    for kept, layer, evidence in zip(kept_L, prefilled.layers, prefilled.evidence, strict=True):
        alone = policy.compress(layer, evidence, whole)
        assert kept.num_slots_H == alone.num_slots_H and torch.equal(kept.position_S, alone.position_S)
    assert len({kept.num_slots_H for kept in kept_L}) > 2


def test_it_has_an_older_name() -> None:
    older, newer = (parse_policy_entry({"name": name})[0].canonical() for name in ("dbudgetkv", "refreekv"))
    assert older == newer


@pytest.mark.parametrize(
    ("name", "value"),
    [("threshold", 1), ("whole_layers", -1), ("ranked_by", "h2o"), ("n_initial", -1), ("window_size", 0)],
)
def test_bad_parameters_are_refused(name: str, value: object) -> None:
    with pytest.raises(PolicyError, match=f"refreekv: {name}"):
        build("refreekv", {name: value})
