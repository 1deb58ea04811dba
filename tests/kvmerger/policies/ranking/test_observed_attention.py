"""Observed attention against each column's mean over the queries that could see it."""

import pytest
import torch

from kvmerger.policies.ranking.observed_attention import ObservedAttention
from tests.fakes.random_layers import (
    DTYPES,
    NUM_TOKENS,
    assert_scores_and_choice,
    attention_matrix,
    random_states,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_are_means_over_the_queries_that_see_a_key(dtype: torch.dtype, seed: int) -> None:
    states = random_states(seed, dtype)
    matrix = attention_matrix(states)
    expected = []
    for head in (0, 1):
        received = []
        for token in range(NUM_TOKENS):
            paid = [
                matrix[query_head][row][token]
                for query_head in (2 * head, 2 * head + 1)
                for row in range(token, NUM_TOKENS)
            ]
            received.append(sum(paid) / len(paid))
        expected.append(received)
    assert_scores_and_choice(ObservedAttention(), states, expected)
