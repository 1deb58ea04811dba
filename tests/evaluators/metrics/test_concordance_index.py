"""The concordance index is the survival analysts' one: pairs by time, ties of the prediction half, all observed."""

from __future__ import annotations

import random

import pytest

from evaluators.scoring import score


def survival_concordance(event_times: list[int], predicted: list[int]) -> float:
    """Harrell's index by its definition, pair by pair."""
    correct, pairs = 0.0, 0
    for one in range(len(event_times)):
        for other in range(len(event_times)):
            if event_times[one] < event_times[other]:
                pairs += 1
                correct += 1.0 if predicted[one] < predicted[other] else 0.0
                correct += 0.5 if predicted[one] == predicted[other] else 0.0
    return correct / pairs


@pytest.mark.parametrize("length", [2, 3, 7, 30])
def test_score_is_the_survival_index_of_the_positions(length: int, seed: int) -> None:
    random_numbers = random.Random(f"{seed}/{length}")
    for _ in range(20):
        gold = random_numbers.sample(range(1, length + 1), length)
        guess = random_numbers.sample(gold, length)
        times = [gold.index(number) for number in range(1, length + 1)]
        places = [guess.index(number) for number in range(1, length + 1)]
        got = score("concordance_index", str(guess), [", ".join(map(str, gold))])
        assert got == pytest.approx(survival_concordance(times, places), abs=1e-12)


def test_turning_a_list_round_turns_the_score_round(seed: int) -> None:
    guess = random.Random(seed).sample(range(1, 12), 11)
    gold = ["1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"]
    forth, back = (score("concordance_index", str(it), gold) for it in (guess, guess[::-1]))
    assert forth + back == pytest.approx(1.0)
