"""KeyDiff against cosines taken one by one."""

import math

import pytest
import torch

from kvmerger.policies.ranking.keydiff import KeyDiff
from tests.fakes.random_layers import (
    DTYPES,
    HEAD_DIM,
    NUM_TOKENS,
    as_lists,
    assert_scores_and_choice,
    random_states,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_are_minus_the_cosine_with_the_mean_direction(dtype: torch.dtype, seed: int) -> None:
    states = random_states(seed, dtype)
    states.k_HND.add_(1.0)  # a common direction, so that cosines are not all near 0
    expected = []
    for keys in as_lists(states.k_HND):
        norms = [math.sqrt(sum(x * x for x in key)) for key in keys]
        anchor = [
            sum(key[channel] / norm for key, norm in zip(keys, norms, strict=True)) / NUM_TOKENS
            for channel in range(HEAD_DIM)
        ]
        length = math.sqrt(sum(x * x for x in anchor))
        expected.append(
            [
                -sum(x * y for x, y in zip(key, anchor, strict=True)) / (norm * length)
                for key, norm in zip(keys, norms, strict=True)
            ]
        )
    assert_scores_and_choice(KeyDiff(), states, expected)
