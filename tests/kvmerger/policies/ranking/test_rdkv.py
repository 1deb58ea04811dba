"""RDKV's weights of tokens, query by query in float64; with one width its water-filling is a threshold on them."""

import itertools

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, SlotCount
from kvmerger.building import build
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.rdkv import RDKVRanking
from kvmerger.prefill.evidence import Evidence
from tests.fakes.planted_layers import NUM_HEADS, NUM_TOKENS, planted_states, slow_logits


def slow_weights(seed: int, window_size: int, kernel_size: int) -> list[list[float]]:
    """Every head's weights, token by token."""
    states = planted_states(seed, torch.float32)
    heads = []
    for head in range(NUM_HEADS):
        raw = [0.0] * NUM_TOKENS
        for row in range(NUM_TOKENS - window_size, NUM_TOKENS):
            for logits in slow_logits(states, head, row):
                shares = torch.tensor(logits, dtype=torch.float64).softmax(dim=0).tolist()
                for column, share in enumerate(shares):
                    num_queries = min(window_size, NUM_TOKENS - column)
                    raw[column] += share / 2 / num_queries
        pooled = []
        for column in range(NUM_TOKENS):
            places = range(column - kernel_size // 2, column + kernel_size // 2 + 1)
            # Reflected: the token at an end is not repeated.
            inside = [abs(place) if place < NUM_TOKENS else 2 * (NUM_TOKENS - 1) - place for place in places]
            pooled.append(sum(raw[place] for place in inside) / kernel_size)
        heads.append(pooled)
    return heads


@pytest.mark.parametrize(("window_size", "kernel_size"), [(32, 5), (8, 1), (1, 7)])
def test_weights_equal_loops_over_queries(window_size: int, kernel_size: int, seed: int) -> None:
    policy = RDKVRanking(window_size, kernel_size)
    evidence = Evidence(planted_states(seed, torch.float32), 3, 8, prompt_seed=7)
    evidence.capture(policy.needs())
    expected = torch.tensor(slow_weights(seed, window_size, kernel_size), dtype=torch.float64)
    torch.testing.assert_close(policy.scores(evidence).double(), expected, atol=1e-6, rtol=1e-4)


def test_of_two_widths_the_least_weighted_error_is_the_threshold(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(9, generator=generator).tolist()
    error = {0: 1.0, 4: 0.014}
    for num_stored in range(10):
        best = min(
            itertools.combinations(range(9), num_stored),
            key=lambda stored: sum(w * error[4 if token in stored else 0] for token, w in enumerate(weights)),
        )
        assert set(best) == set(sorted(range(9), key=lambda token: -weights[token])[:num_stored])


def test_short_prompts_and_even_kernels_are_refused(seed: int) -> None:
    with pytest.raises(BudgetError, match="more than 32"):
        RDKVRanking().check(CacheShape(32, 4, 2), SlotCount(8))
    with pytest.raises(PolicyError, match="kernel_size must be odd"):
        build("rdkv+int4", {"kernel_size": 4})
    assert RDKVRanking().num_protected == 0
    evidence = Evidence(planted_states(seed, torch.float32), 3, 8, prompt_seed=7)
    evidence.capture(RDKVRanking().needs())
    assert RDKVRanking().select(evidence, Budget.uniform(5, NUM_HEADS, 0.05)).sum() == 5 * NUM_HEADS
