"""LongBench's counting tasks score the share of right numbers, so that a list of guesses earns little."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d+")


def share_of_numbers(prediction: str, gold: str) -> float:
    """Share, 0 to 1, of the prediction's runs of digits that read `gold`; 0 when it has none."""
    numbers = _NUMBER.findall(prediction)
    return numbers.count(gold) / len(numbers) if numbers else 0.0


def share_of_paragraphs(prediction: str, answer: str, gold_pattern: re.Pattern[str]) -> float:
    """`share_of_numbers` of the answer's paragraph, the first group of `gold_pattern`; 0 when it names none."""
    gold = gold_pattern.search(answer)
    return share_of_numbers(prediction, gold[1]) if gold else 0.0
