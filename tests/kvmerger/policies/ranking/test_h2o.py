"""H2O against accumulated attention added up query by query."""

import pytest
import torch

from kvmerger.budget import Budget, KeptRatio, SlotCount
from kvmerger.policies.allocation.adakv import AdaKV
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.h2o import H2O
from tests.fakes.random_layers import (
    DTYPES,
    NUM_TOKENS,
    RAGGED,
    attention_matrix,
    evidence_for,
    kept_positions,
    random_states,
)


def accumulated(states) -> list[list[float]]:
    """(H, N): column sums, averaged over the two query heads of a group."""
    matrix = attention_matrix(states)
    columns = [[sum(row[token] for row in rows) for token in range(NUM_TOKENS)] for rows in matrix]
    return [
        [(columns[2 * head][token] + columns[2 * head + 1][token]) / 2 for token in range(NUM_TOKENS)]
        for head in (0, 1)
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recent_share", [0, 0.29, 0.5, 1])
def test_recent_tokens_then_heavy_hitters(recent_share: float, dtype: torch.dtype, seed: int) -> None:
    states = random_states(seed, dtype)
    mass = accumulated(states)
    for head, kept in enumerate(kept_positions(H2O(recent_share), states)):
        num_slots = RAGGED.num_slots_H[head]
        num_recent = {0: 0, 0.29: num_slots * 29 // 100, 0.5: num_slots // 2, 1: num_slots}[recent_share]
        before = NUM_TOKENS - num_recent
        assert [token for token in kept if token >= before] == list(range(before, NUM_TOKENS))
        heavy = [token for token in kept if token < before]
        assert len(heavy) == num_slots - num_recent
        light = set(range(before)) - set(heavy)
        if heavy:
            assert (
                min(mass[head][token] for token in heavy) >= max(mass[head][token] for token in light) - 1e-4
            )


def test_every_head_keeps_its_recent_share_when_heads_compete(seed: int) -> None:
    states = random_states(seed)
    states.k_HND[1] *= 4  # one head's mass is concentrated, so that the other takes its slots
    kept = kept_positions(AdaKV(H2O(), alpha=0.1), states, Budget.uniform(40, 2, 1 / 3))
    for positions in kept:
        assert set(range(NUM_TOKENS - 20, NUM_TOKENS)) <= set(positions)
    assert sum(map(len, kept)) == 80


def test_shared_evidence_stays_as_it_is(seed: int) -> None:
    policy, states = H2O(), random_states(seed)
    evidence = evidence_for(policy, states)
    before = policy.scores(evidence).clone()
    policy.select(evidence, RAGGED)
    assert torch.equal(policy.scores(evidence), before)


def test_any_budget_is_possible() -> None:
    for budget in (SlotCount(1), KeptRatio(1.0)):
        H2O().check(CacheShape(NUM_TOKENS, 4, 2), budget)


@pytest.mark.parametrize("recent_share", [-0.1, 1.1, "half", True, float("nan")])
def test_what_is_no_share_is_refused(recent_share: object) -> None:
    with pytest.raises(PolicyError, match="h2o: recent_share"):
        H2O(recent_share)  # type: ignore[arg-type]
