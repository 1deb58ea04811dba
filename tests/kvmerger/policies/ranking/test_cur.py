"""CUR against squared norms added up window by window."""

import math

import pytest
import torch

from kvmerger.budget import BudgetError, SlotCount
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.cur import CUR, LEVERAGE_TYPES
from tests.fakes.random_layers import (
    DTYPES,
    NUM_TOKENS,
    as_lists,
    assert_scores_and_choice,
    kept_positions,
    random_states,
)


def shares(vectors: list[list[float]], window: int | None) -> list[float]:
    squares = [sum(x * x for x in vector) for vector in vectors]
    if window is None:
        return squares
    found = []
    for token, square in enumerate(squares):
        start = token // window * window
        found.append(square / sum(squares[start : start + window]))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leverage_type", LEVERAGE_TYPES)
@pytest.mark.parametrize("window", [16, 7, None])
def test_scores_are_shares_of_a_windows_squared_norms(
    window: int | None, leverage_type: str, dtype: torch.dtype, seed: int
) -> None:
    states = random_states(seed, dtype)
    combine = {
        "key": lambda key, value: key,
        "value": lambda key, value: value,
        "kv_avg": lambda key, value: (key + value) / 2,
        "kv_product": lambda key, value: key * value,
    }[leverage_type]
    expected = []
    for keys, values in zip(as_lists(states.k_HND), as_lists(states.v_HND), strict=True):
        leverages = [combine(k, v) for k, v in zip(shares(keys, window), shares(values, window), strict=True)]
        expected.append([math.inf if token < 3 else x / sum(leverages) for token, x in enumerate(leverages)])
    policy = CUR(
        3,
        leverage_type,
        use_local_approximation=window is not None,
        local_window_size=window or 16,  # type: ignore[arg-type]
    )
    assert_scores_and_choice(policy, states, expected)


def test_a_window_of_zeros_is_worth_nothing(seed: int) -> None:
    states = random_states(seed)
    states.k_HND[:, 32:48] = 0
    assert not set(kept_positions(CUR(), states)[0]) & set(range(32, 48))


def test_the_budget_must_hold_the_sinks() -> None:
    with pytest.raises(BudgetError, match="always keeps 4"):
        CUR().check(CacheShape(NUM_TOKENS, 4, 2), SlotCount(3))


@pytest.mark.parametrize(
    "values",
    [{"num_sinks": -1}, {"leverage_type": "query"}, {"local_window_size": 0}, {"use_local_approximation": 1}],
)
def test_bad_parameters_are_refused_by_name(values: dict) -> None:
    with pytest.raises(PolicyError, match=next(iter(values))):
        CUR(**values)
