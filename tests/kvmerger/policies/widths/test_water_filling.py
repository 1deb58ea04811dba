"""Steps by falling gain per byte: against one step at a time, and against all choices there are."""

import random
from itertools import pairwise

import pytest
import torch

from kvmerger.policies.widths.water_filling import steps_taken
from tests.slow.rdkv import filled, most_gained

COSTS = (21, 16, 32, 60)
ERROR = (1.0, 0.256, 0.0102, 3.6e-5, 0.0)


def gains_of(weights: list[float], num_steps: int) -> list[list[float]]:
    falls = [low - high for low, high in pairwise(ERROR[: num_steps + 1])]
    return [[weight * fall for fall in falls] for weight in weights]


def taken(weights_HX: list[list[float]], num_steps: int, budget_H: list[int]) -> list[list[int]]:
    gain_HXJ = torch.tensor([gains_of(weights, num_steps) for weights in weights_HX], dtype=torch.float64)
    cost_HJ = torch.tensor([COSTS[:num_steps]] * len(weights_HX))
    return steps_taken(gain_HXJ.mT, cost_HJ, torch.tensor(budget_H)).tolist()


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_it_is_one_step_after_the_other(num_steps: int, seed: int) -> None:
    rng = random.Random(seed)
    weights_HX = [[rng.random() ** 6 for _ in range(40)] for _ in range(5)]
    budget_H = [rng.randrange(0, 45 * sum(COSTS[:num_steps])) for _ in weights_HX]
    expected = [
        filled(gains_of(weights, num_steps), COSTS[:num_steps], budget)
        for weights, budget in zip(weights_HX, budget_H, strict=True)
    ]
    assert taken(weights_HX, num_steps, budget_H) == expected


@pytest.mark.parametrize("num_units", [1, 3, 5])
def test_no_choice_of_the_same_bytes_gains_more(num_units: int, seed: int) -> None:
    rng = random.Random(seed)
    weights = [rng.random() ** 3 for _ in range(num_units)]
    num_steps = 3
    gains = gains_of(weights, num_steps)
    for budget in range(0, num_units * sum(COSTS[:num_steps]) + 5, 7):
        ((*levels,),) = taken([weights], num_steps, [budget])
        spent = sum(sum(COSTS[:level]) for level in levels)
        assert spent <= budget
        ours = sum(sum(its[:level]) for its, level in zip(gains, levels, strict=True))
        assert ours == pytest.approx(most_gained(gains, COSTS[:num_steps], spent), rel=1e-12)


def test_levels_rise_with_the_budget_and_with_the_weight(seed: int) -> None:
    rng = random.Random(seed)
    weights = sorted(rng.random() ** 6 for _ in range(60))
    before = [0] * len(weights)
    for budget in range(0, 8000, 97):
        (levels,) = taken([weights], 4, [budget])
        assert levels == sorted(levels)
        assert all(now >= then for now, then in zip(levels, before, strict=True))
        before = levels


def test_of_equal_units_the_earlier_comes_first_and_a_step_never_before_the_one_under_it() -> None:
    assert taken([[1.0] * 4, [0.0] * 4], 1, [21 * 2, 21 * 3]) == [[1, 1, 0, 0], [1, 1, 1, 0]]
    # The second step gains more per byte than the first, and still needs it.
    gain_HJX = torch.tensor([[[1.0, 0.5], [5.0, 0.1]]])
    levels = steps_taken(gain_HJX, torch.tensor([[10, 10]]), torch.tensor([10]))
    assert levels.tolist() == [[1, 0]]


def test_what_does_not_fit_ends_it_though_something_cheaper_would() -> None:
    gain_HJX = torch.tensor([[[1.0, 0.9], [0.8, 0.1]]])
    # The first unit's second step is next, at 3 bytes; the second unit's first would take 10.
    assert steps_taken(gain_HJX, torch.tensor([[10, 3]]), torch.tensor([12])).tolist() == [[1, 0]]
    assert steps_taken(gain_HJX, torch.tensor([[10, 3]]), torch.tensor([22])).tolist() == [[2, 0]]
