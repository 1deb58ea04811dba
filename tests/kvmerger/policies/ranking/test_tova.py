"""TOVA against the last row of the attention matrix."""

import pytest
import torch

from kvmerger.budget import Budget
from kvmerger.policies.ranking.tova import TOVA
from tests.fakes.random_layers import (
    DTYPES,
    NUM_QUERY_HEADS,
    NUM_TOKENS,
    assert_scores_and_choice,
    attention_matrix,
    kept_positions,
    random_states,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_are_the_last_querys_attention_averaged_over_all_heads(dtype: torch.dtype, seed: int) -> None:
    states = random_states(seed, dtype)
    matrix = attention_matrix(states)
    mean = [
        sum(matrix[head][-1][token] for head in range(NUM_QUERY_HEADS)) / NUM_QUERY_HEADS
        for token in range(NUM_TOKENS)
    ]
    assert_scores_and_choice(TOVA(), states, [mean, mean])


def test_heads_keep_the_same_tokens_and_the_last_one_is_not_protected(seed: int) -> None:
    states = random_states(seed)
    # Both query heads of a group ask the same, and the last key is the opposite of it.
    last_2GD = states.q_QND.view(2, 2, NUM_TOKENS, -1)[:, :, -1]
    last_2GD[:, 1] = last_2GD[:, 0]
    states.k_HND[:, -1] = -10 * last_2GD[:, 0]
    first, second = kept_positions(TOVA(), states, Budget.uniform(40, 2, 1 / 3))
    assert first == second
    assert NUM_TOKENS - 1 not in first
