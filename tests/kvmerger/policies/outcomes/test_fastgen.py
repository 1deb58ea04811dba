"""FastGen against masks on whole maps of attention, and the ends of what heads recover."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from kvmerger.building import Variant, build
from kvmerger.contract.layers import random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.kernels.reference import prompt
from kvmerger.policies.base import PolicyError
from kvmerger.policies.outcomes.fastgen import FastGen, near_mass
from kvmerger.prefill.evidence import Evidence, LayerStates
from kvmerger.prefill.token_classes import TOKEN_CLASSES
from tests.fakes.random_layers import (
    DTYPES,
    NUM_KV_HEADS,
    NUM_QUERY_HEADS,
    NUM_TOKENS,
    attention_matrix,
    evidence_for,
    random_states,
)
from tests.slow.outcomes import fastgen as slow

GROUP = NUM_QUERY_HEADS // NUM_KV_HEADS


def classes_of(seed: int) -> list[int]:
    drawn = torch.rand(NUM_TOKENS, generator=torch.Generator().manual_seed(seed))
    return [1 if it < 0.05 else 2 if it < 0.2 else 0 for it in drawn.tolist()]


def evidence_of(policy: FastGen, states: LayerStates, classes: list[int]) -> Evidence:
    evidence = evidence_for(policy, states)
    evidence.put(TOKEN_CLASSES, torch.tensor(classes, dtype=torch.uint8))
    return evidence


def kept_by(policy: FastGen, evidence: Evidence) -> list[list[int]]:
    is_kept_HN = policy.select(evidence, None)  # type: ignore[arg-type]
    return [row_N.nonzero()[:, 0].tolist() for row_N in is_kept_HN]


def maps_of(states: LayerStates) -> list[list[list[float]]]:
    matrix = attention_matrix(states)
    return [slow.group_map(matrix[head * GROUP : (head + 1) * GROUP]) for head in range(NUM_KV_HEADS)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_near_mass_is_what_queries_have_in_their_windows(
    dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No divisor of the tokens.
    monkeypatch.setattr(prompt, "_MAX_BLOCK_SCORES", 7 * NUM_QUERY_HEADS * NUM_TOKENS)
    states = random_states(seed, dtype)
    maps = maps_of(states)
    for share, window in ((0.0, 1), (0.1, 12), (1.0, NUM_TOKENS)):
        found_HN = evidence_for(FastGen(local_share=share), states).get(near_mass(share))
        assert found_HN.dtype == torch.float32
        for found_N, of_head in zip(found_HN.tolist(), maps, strict=True):
            assert found_N == pytest.approx(slow.near(of_head, window), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_head_keeps_the_cheapest_that_recovers_enough(dtype: torch.dtype, seed: int) -> None:
    states, classes = random_states(seed, dtype), classes_of(seed)
    policy = FastGen(frequent_share=0.2, local_share=0.1)
    evidence = evidence_of(policy, states, classes)
    expected = [slow.kinds(of_head, classes, (0.2, 0.1), 4) for of_head in maps_of(states)]
    for head, (kept, recovered) in enumerate(expected):
        assert recovered == sorted(recovered) and recovered[-1] == pytest.approx(1)
        # Between what two kinds recover: the next one is taken.
        bounds = [0.0, *(sum(pair) / 2 for pair in itertools.pairwise(recovered)), 1.0]
        for place, bound in enumerate([*bounds[:5], 1.0]):
            found = kept_by(replace(policy, recovery=bound), evidence)[head]
            assert found == kept[min(place, 4)]
    counts = [[len(it) for it in kept] for kept, _ in expected]
    assert all(it == sorted(it) and it[-1] == NUM_TOKENS and len(set(it)) == 5 for it in counts)


def test_a_window_is_as_much_as_a_head_needs_that_looks_no_further(seed: int) -> None:
    states = random_states(seed)
    # Far from each other in angle, tokens see only those near them.
    angle_N = torch.arange(NUM_TOKENS) * 0.02
    turning_ND = torch.stack([angle_N.cos(), angle_N.sin()], dim=1) * 60
    q_QND, k_HND = (torch.zeros(heads, NUM_TOKENS, 8) for heads in (NUM_QUERY_HEADS, NUM_KV_HEADS))
    q_QND[..., :2], k_HND[..., :2] = turning_ND, turning_ND
    policy = FastGen(recovery=0.99, frequent_share=0.05, local_share=0.3)
    evidence = evidence_of(policy, replace(states, q_QND=q_QND, k_HND=k_HND), [0] * NUM_TOKENS)
    recent = set(range(NUM_TOKENS - 36, NUM_TOKENS))
    for kept in kept_by(policy, evidence):
        assert recent <= set(kept) and len(kept) <= 36 + 6 + 4


def test_heads_and_layers_differ_and_counters_say_what_they_recover(seed: int) -> None:
    policy = FastGen(recovery=0.74)
    prefilled = random_prefill(seed, torch.float32, policy)
    kept_L = compress_all(prefilled, [Variant("tried", policy, None)]).done["tried"].prefix
    for kept in kept_L:
        assert 0.74 <= kept.counters["recovered_attention"] <= 1
        whole = sum(slots == prefilled.evidence[0].num_tokens for slots in kept.num_slots_H)
        assert kept.counters["full_ratio"] == whole / len(kept.num_slots_H)
    assert any(not kept.is_uniform for kept in kept_L)


@pytest.mark.parametrize(
    ("name", "value"),
    [("recovery", 1.1), ("frequent_share", -0.1), ("local_share", float("nan")), ("n_initial", 0)],
)
def test_bad_parameters_are_refused(name: str, value: object) -> None:
    with pytest.raises(PolicyError, match=f"fastgen: {name}"):
        build("fastgen", {name: value})
