"""CriticalKV and ChunkKV keep the tokens that kvpress's presses of these names keep, around the same rankings."""

from typing import Any

import pytest
import torch

from kvmerger.budget import Budget
from kvmerger.building import build
from kvmerger.policies.scoring import ScoringPolicy
from tests.kvmerger.policies.test_kvpress import (
    Layer,
    assert_same_tokens,
    cases,
    compressed_by,
    evidence_of,
    kept_by,
    presses,
    ratio_for,
)

__all__ = ["presses"]

RANKINGS = [
    ("keydiff", {}, "KeyDiffPress"),
    ("expected_attention", {"use_vnorm": False, "n_sink": 0}, "ExpectedAttentionPress"),
]


def made(name: str, params: dict) -> ScoringPolicy:
    policy = build(name, params)
    assert isinstance(policy, ScoringPolicy)
    return policy


def press_of(presses: Any, press: str, params: dict, layer: Layer, num_slots: int) -> Any:
    return getattr(presses, press)(ratio_for(num_slots, layer.num_tokens), **params)


@pytest.mark.parametrize(("name", "params", "press"), RANKINGS, ids=str)
def test_criticalkv_keeps_the_same_tokens(
    name: str, params: dict, press: str, presses: Any, seed: int
) -> None:
    policy = made(f"{name}+criticalkv", params)
    for layer, num_slots in cases(seed):
        evidence, budget = evidence_of(policy, layer), Budget.uniform(num_slots, layer.num_heads, 0.5)
        theirs_HN = kept_by(
            presses.CriticalKVPress(press_of(presses, press, params, layer, num_slots)), layer
        )
        assert_same_tokens(policy.select(evidence, budget), theirs_HN, policy.scores_at(evidence, budget))


@pytest.mark.parametrize(("name", "params", "press"), RANKINGS, ids=str)
def test_critical_adakv_gives_every_head_the_same_tokens(
    name: str, params: dict, press: str, presses: Any, seed: int
) -> None:
    policy = made(f"{name}+adakv+criticalkv", params)
    for layer, num_slots in cases(seed):
        inner = press_of(presses, press, params, layer, num_slots)
        compressed_by(presses.CriticalAdaKVPress(inner), layer)
        theirs_HN = torch.ones(layer.states.k_HND.shape[:2], dtype=torch.bool)
        theirs_HN[layer.module.masked_key_indices[1:]] = False
        evidence, budget = evidence_of(policy, layer), Budget.uniform(num_slots, layer.num_heads, 0.5)
        ours_HN = policy.select(evidence, budget)
        # Of two heads' tokens that score alike but for rounding, one head may have either.
        assert int((ours_HN != theirs_HN).sum()) <= 4


@pytest.mark.parametrize(("name", "params", "press"), RANKINGS, ids=str)
def test_chunkkv_keeps_the_same_chunks(name: str, params: dict, press: str, presses: Any, seed: int) -> None:
    policy = made(f"{name}+chunkkv", params)
    for layer, num_slots in cases(seed):
        # Of few chunks kvpress's ratio counts the chunks, so what it kept is the budget.
        inner = press_of(presses, press, params, layer, num_slots)
        theirs_HN = kept_by(presses.ChunkKVPress(inner), layer)
        kept = int(theirs_HN[0].sum())
        ours_HN = policy.select(evidence_of(policy, layer), Budget.uniform(kept, layer.num_heads, 0.5))
        assert torch.equal(ours_HN, theirs_HN)
