"""Ada-KV against a choice made slot by slot, and the memory it frees."""

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio, LikeVariant, SlotCount
from kvmerger.policies.allocation.adakv import AdaKV
from kvmerger.policies.base import CacheShape
from kvmerger.policies.ranking.knorm import Knorm
from kvmerger.policies.ranking.observed_attention import ObservedAttention
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.policies.ranking.streaming_llm import StreamingLLM
from kvmerger.policies.scoring import ScoringPolicy
from tests.fakes.random_layers import (
    DTYPES,
    HEAD_DIM,
    NUM_KV_HEADS,
    NUM_TOKENS,
    compressed,
    evidence_for,
    kept_positions,
    random_states,
)

POLICIES = [SnapKV(8), Knorm(), ObservedAttention(), StreamingLLM()]


def chosen(scores: list[list[float]], num_slots: int, num_safe: int) -> list[list[int]]:
    """Each head's own best first, then whoever is best, one slot after the other; ties to the earlier head and token."""
    kept: list[set[int]] = [set() for _ in scores]
    for head, row in enumerate(scores):
        for token in sorted(range(len(row)), key=lambda token: (-row[token], token))[:num_safe]:
            kept[head].add(token)
    while sum(map(len, kept)) < num_slots * len(scores):
        best = None
        for head, row in enumerate(scores):
            for token, score in enumerate(row):
                if token not in kept[head] and (best is None or score > best[0]):
                    best = (score, head, token)
        assert best is not None
        kept[best[1]].add(best[2])
    return [sorted(tokens) for tokens in kept]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alpha", [0, 0.29, 0.9, 1])
@pytest.mark.parametrize("inner", POLICIES, ids=str)
def test_heads_compete_for_what_is_beyond_their_own_share(
    inner: ScoringPolicy, alpha: float, dtype: torch.dtype, seed: int
) -> None:
    states = random_states(seed, dtype)
    states.k_HND[1] *= 1.5
    num_slots = 50
    num_safe = max({0: 0, 0.29: 14, 0.9: 45, 1: 50}[alpha], inner.num_protected)
    scores = inner.scores(evidence_for(inner, states)).tolist()
    kept = kept_positions(AdaKV(inner, alpha), states, Budget.uniform(num_slots, 2, 0.4))
    assert kept == chosen(scores, num_slots, num_safe)


@pytest.mark.parametrize(("alpha", "fewest"), [(0, 0), (0.01, 1), (0.2, 1), (1, 4)])
def test_no_head_is_left_empty_while_heads_have_a_share(alpha: float, fewest: int, seed: int) -> None:
    states = random_states(seed)
    states.k_HND[1] *= 1000  # all of its keys score below the other head's
    kept = compressed(AdaKV(Knorm(), alpha), states, Budget.uniform(4, 2, 0.03))
    assert kept.num_slots_H == (8 - fewest, fewest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_are_ragged_and_what_is_dropped_is_freed(dtype: torch.dtype, seed: int) -> None:
    states = random_states(seed, dtype)
    states.k_HND[1] *= 1.5
    kept = compressed(AdaKV(Knorm()), states, Budget.uniform(50, 2, 0.4))
    kept.check_integrity()
    assert kept.num_slots_H[0] > kept.num_slots_H[1] >= 10
    slot_bytes = 2 * HEAD_DIM * dtype.itemsize + torch.int32.itemsize
    assert kept.nbytes == 50 * NUM_KV_HEADS * slot_bytes


def test_budgets_it_cannot_share_out_are_refused(seed: int) -> None:
    shape = CacheShape(NUM_TOKENS, 4, NUM_KV_HEADS)
    with pytest.raises(BudgetError, match="use the ranking alone"):
        AdaKV(Knorm()).check(shape, LikeVariant("other"))
    with pytest.raises(BudgetError, match="always keeps 8"):
        AdaKV(SnapKV(8)).check(shape, SlotCount(7))
    with pytest.raises(BudgetError, match="even budget"):
        compressed(AdaKV(Knorm()), random_states(seed), Budget((3, 4), 0.1))
    AdaKV(SnapKV(8)).check(shape, KeptRatio(0.5))
