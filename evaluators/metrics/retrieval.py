"""LongBench's retrieval and counting tasks score the share of right numbers, so that a list of guesses earns little.

retrieval_score, retrieval_zh_score and count_score in metrics.py of THUDM/LongBench@2e00731f.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.metrics.best_answer import best_over_answers
from evaluators.scoring import register_metric

_GOLD = re.compile(r"Paragraph (\d+)")
_GOLD_ZH = re.compile(r"段落(\d+)")
_NUMBER = re.compile(r"\d+")


@register_metric("retrieval")
def retrieval(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best share over the answers, 0 to 1; an answer reads "Paragraph 7", and one without a number scores 0."""
    return best_over_answers(lambda answer: share_of_paragraphs(prediction, answer, _GOLD), answers)


@register_metric("retrieval_zh")
def retrieval_zh(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best share over the answers, 0 to 1; an answer reads "段落7", and one without a number scores 0."""
    return best_over_answers(lambda answer: share_of_paragraphs(prediction, answer, _GOLD_ZH), answers)


@register_metric("count")
def count(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `share_of_numbers` over the answers, 0 to 1."""
    return best_over_answers(lambda answer: share_of_numbers(prediction, answer), answers)


def share_of_numbers(prediction: str, gold: str) -> float:
    """Share, 0 to 1, of the prediction's runs of digits that read `gold`; 0 when it has none."""
    numbers = _NUMBER.findall(prediction)
    # Compared as text, like the authors do: "07" is not "7".
    return numbers.count(gold) / len(numbers) if numbers else 0.0


def share_of_paragraphs(prediction: str, answer: str, gold_pattern: re.Pattern[str]) -> float:
    """`share_of_numbers` of the answer's paragraph, the first group of `gold_pattern`; 0 when it names none."""
    gold = gold_pattern.search(answer)
    return share_of_numbers(prediction, gold[1]) if gold else 0.0
