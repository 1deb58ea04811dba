"""Whole chunks in the order of their means, the same tokens in all heads, and never a slot too few or too many."""

import pytest
import torch

from kvmerger.budget import Budget
from kvmerger.building import build
from kvmerger.policies.base import PolicyError
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence
from tests.fakes.planted_layers import NUM_HEADS, NUM_TOKENS, planted_states
from tests.slow.allocation import slow_chunks


def evidence_of(policy: ScoringPolicy, seed: int) -> Evidence:
    evidence = Evidence(planted_states(seed, torch.float32), 3, 8, prompt_seed=7)
    evidence.capture(policy.needs())
    return evidence


@pytest.mark.parametrize("chunk_length", [1, 7, 20, 200])
@pytest.mark.parametrize("front", ["snapkv", "keydiff", "tova"])
def test_equals_loops_over_tokens(front: str, chunk_length: int, seed: int) -> None:
    window = {"window_size": 8} if front == "snapkv" else {}
    policy = build(f"{front}+chunkkv", {"chunk_length": chunk_length, **window})
    inner = build(front, window)
    assert isinstance(policy, ScoringPolicy) and isinstance(inner, ScoringPolicy)
    evidence = evidence_of(policy, seed)
    scores = inner.scores(evidence).tolist()
    for num_slots in (11, 40, 77, NUM_TOKENS):
        is_kept_HN = policy.select(evidence, Budget.uniform(num_slots, NUM_HEADS, 0.4))
        kept = [set(row.nonzero().flatten().tolist()) for row in is_kept_HN]
        assert kept == [slow_chunks(scores, num_slots, chunk_length)] * NUM_HEADS


def test_kept_tokens_form_as_many_runs_as_chunks_fit(seed: int) -> None:
    policy = build("keydiff+chunkkv", {"chunk_length": 24})
    assert isinstance(policy, ScoringPolicy)
    evidence = evidence_of(policy, seed)
    is_kept_N = policy.select(evidence, Budget.uniform(48, NUM_HEADS, 0.5))[0]
    assert int((is_kept_N[1:] & ~is_kept_N[:-1]).sum()) + int(is_kept_N[0]) <= 48 // 24


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("snapkv+adakv+chunkkv", {}, "the same tokens in all heads"),
        ("kvzip+chunkkv", {}, "the same tokens in all heads"),
        ("snapkv+chunkkv", {"chunk_length": 0}, "chunk_length must be"),
    ],
)
def test_what_it_cannot_work_with_is_refused(name: str, params: dict, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        build(name, params)
