"""LagKV against deviations computed channel by channel, and where it has nothing to rank by."""

import math
import statistics

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, SlotCount
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.lagkv import LagKV
from kvmerger.policies.ranking.streaming_llm import StreamingLLM
from tests.fakes.random_layers import (
    DTYPES,
    HEAD_DIM,
    NUM_TOKENS,
    as_lists,
    compressed,
    evidence_for,
    kept_positions,
    random_states,
)

N_SINK, LAG = 3, 20  # 117 tokens behind the sinks: 5 partitions, of which 4 have a next one, and 17 left over
NUM_RANKED = 4 * LAG


def relative_scores(vectors: list[list[float]], start: int) -> list[float]:
    """Softmaxed deviations of the partition that begins at ``start``."""
    own, following = vectors[start : start + LAG], vectors[start + LAG : start + 2 * LAG]
    deviations = []
    for vector in own:
        scaled = []
        for channel in range(HEAD_DIM):
            column = [other[channel] for other in following]
            scaled.append((vector[channel] - min(column)) / (max(column) - min(column)))
        deviations.append(statistics.stdev(scaled))
    total = sum(math.exp(x) for x in deviations)
    return [math.exp(x) / total for x in deviations]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_are_deviations_relative_to_the_next_partition(dtype: torch.dtype, seed: int) -> None:
    states = random_states(seed, dtype)
    found_HN = LagKV(N_SINK, LAG, cross_scoring=True).scores(evidence_for(LagKV(N_SINK, LAG), states))
    for head, (keys, values) in enumerate(zip(as_lists(states.k_HND), as_lists(states.v_HND), strict=True)):
        expected = [
            (of_key + of_value) / 2
            for start in range(N_SINK, N_SINK + NUM_RANKED, LAG)
            for of_key, of_value in zip(
                relative_scores(keys, start), relative_scores(values, start), strict=True
            )
        ]
        found = found_HN[head, N_SINK : N_SINK + NUM_RANKED]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-4)
        assert found_HN[head, :N_SINK].isinf().all()
        assert (found_HN[head, N_SINK + NUM_RANKED :] >= 1).all()


def test_each_partition_keeps_its_own_best_and_equally_many(seed: int) -> None:
    states = random_states(seed)
    raw_HN = LagKV(N_SINK, LAG, cross_scoring=True).scores(evidence_for(LagKV(N_SINK, LAG), states))
    num_tail = NUM_TOKENS - N_SINK - NUM_RANKED
    budget = Budget((N_SINK + num_tail + 4 * 5, N_SINK + num_tail + 4 * 9), 0.5)
    for head, kept in enumerate(kept_positions(LagKV(N_SINK, LAG), states, budget)):
        expected = [*range(N_SINK), *range(NUM_TOKENS - num_tail, NUM_TOKENS)]
        for start in range(N_SINK, N_SINK + NUM_RANKED, LAG):
            ranked = sorted(range(start, start + LAG), key=lambda token: -float(raw_HN[head, token]))
            expected += ranked[: (5, 9)[head]]
        assert kept == sorted(expected)


@pytest.mark.parametrize("num_extra", [1, 2, 3])
def test_what_does_not_divide_evenly_goes_where_the_next_best_token_scores_highest(
    num_extra: int, seed: int
) -> None:
    states = random_states(seed)
    raw_HN = LagKV(N_SINK, LAG, cross_scoring=True).scores(evidence_for(LagKV(N_SINK, LAG), states))
    num_each = 6
    num_slots = N_SINK + NUM_TOKENS - N_SINK - NUM_RANKED + 4 * num_each + num_extra
    for head, kept in enumerate(kept_positions(LagKV(N_SINK, LAG), states, Budget((num_slots,) * 2, 0.5))):
        next_best = []
        for start in range(N_SINK, N_SINK + NUM_RANKED, LAG):
            ranked = sorted(range(start, start + LAG), key=lambda token: -float(raw_HN[head, token]))
            assert set(ranked[:num_each]) <= set(kept)
            next_best.append(ranked[num_each])
        next_best.sort(key=lambda token: -float(raw_HN[head, token]))
        assert [token for token in next_best if token in kept] == next_best[:num_extra]


def test_what_does_not_divide_evenly_favours_no_position(seed: int) -> None:
    num_partitions, kept_of = 20, []
    for draw in range(30):
        states = random_states(seed + draw, num_tokens=(num_partitions + 1) * LAG)
        budget = Budget.uniform(LAG + num_partitions // 2, 2, 0.1)
        for kept in kept_positions(LagKV(0, LAG), states, budget):
            kept_of += [token // LAG for token in kept if token < num_partitions * LAG]
    assert len(kept_of) == 30 * 2 * num_partitions // 2
    # The mean of a fair choice has a standard deviation of 0.17 partitions.
    assert abs(sum(kept_of) / len(kept_of) - (num_partitions - 1) / 2) < 1


@pytest.mark.parametrize(("num_tokens", "num_slots"), [(NUM_TOKENS, 30), (30, 12), (N_SINK + 2, N_SINK + 1)])
def test_without_ranks_it_is_sinks_and_recent_tokens_and_says_so(
    num_tokens: int, num_slots: int, seed: int
) -> None:
    states = random_states(seed, num_tokens=num_tokens)
    budget = Budget.uniform(num_slots, 2, num_slots / num_tokens)
    assert kept_positions(LagKV(N_SINK, LAG), states, budget) == kept_positions(
        StreamingLLM(N_SINK), states, budget
    )
    assert compressed(LagKV(N_SINK, LAG), states, budget).counters["is_lag_ranked"] == 0
    assert (
        compressed(LagKV(N_SINK, 10), random_states(seed), Budget.uniform(60, 2, 0.5)).counters[
            "is_lag_ranked"
        ]
        == 1
    )


def test_a_channel_without_range_measures_nothing(seed: int) -> None:
    states = random_states(seed)
    states.k_HND[:, :, 0] = 3.0
    states.v_HND[:] = 0.0
    assert LagKV(N_SINK, LAG).scores(evidence_for(LagKV(N_SINK, LAG), states)).isnan().sum() == 0


def test_the_budget_must_hold_the_sinks_and_a_recent_token() -> None:
    with pytest.raises(BudgetError, match="always keeps 5"):
        LagKV().check(CacheShape(NUM_TOKENS, 4, 2), SlotCount(4))


@pytest.mark.parametrize("values", [{"n_sink": -1}, {"lag_size": 0}, {"cross_scoring": "yes"}])
def test_bad_parameters_are_refused_by_name(values: dict) -> None:
    with pytest.raises(PolicyError, match=next(iter(values))):
        LagKV(**values)
