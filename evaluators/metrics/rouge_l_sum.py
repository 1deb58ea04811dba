"""ROUGE-Lsum of google's `rouge_score` without stemming: InfiniteBench's and SCBench's measure of summaries.

A newline ends a sentence. Of each gold sentence those words count that the longest common subsequence with any predicted
sentence takes. The package fills a table of words by words for every pair; here a row of it is one integer.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from evaluators.metrics.best_answer import best_over_answers
from evaluators.metrics.common_subsequence import rising_columns
from evaluators.scoring import register_metric

MOST_CHARS = 20_000
"""Pairs of sentences cost the product of both lengths; InfiniteBench's longest gold summary has 12,008 characters."""


@register_metric("rouge_l_sum", details="no stemmer", package="rouge_score", max_chars=MOST_CHARS)
def rouge_l_sum(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best rougeLsum F over the answers, 0 to 1."""
    predicted = _sentences(prediction)
    return best_over_answers(lambda answer: _f_measure(_sentences(answer), predicted), answers)


def _f_measure(gold: list[list[str]], predicted: list[list[str]]) -> float:
    num_gold, num_predicted = sum(map(len, gold)), sum(map(len, predicted))
    if not num_gold or not num_predicted:
        return 0.0
    # A word counts no more often than it stands on either side.
    left = Counter(word for words in gold for word in words) & Counter(
        word for words in predicted for word in words
    )
    hits = 0
    for words in gold:
        taken: set[int] = set()
        for other in predicted:
            taken.update(_common_places(words, other))
        for place in sorted(taken):
            hits += left[words[place]] > 0
            left[words[place]] -= 1
    if not hits:
        return 0.0
    precision, recall = hits / num_predicted, hits / num_gold
    return 2 * precision * recall / (precision + recall)


def _common_places(gold: list[str], predicted: list[str]) -> list[int]:
    """Places of the gold words that the package's trace-back takes.

    At unequal words it goes to the previous predicted word only where that is strictly longer.
    """
    places, rises = rising_columns(gold, predicted)
    if not rises[-1]:
        return []
    row, column, taken = len(gold), len(predicted), []
    while row and column:
        if places.get(gold[row - 1], 0) >> (column - 1) & 1:
            taken.append(row - 1)
            row, column = row - 1, column - 1
        elif _length(rises[row], column - 1) > _length(rises[row - 1], column):
            column -= 1
        else:
            row -= 1
    return taken


def _length(rises: int, column: int) -> int:
    return (rises & ((1 << column) - 1)).bit_count()


def _sentences(text: str) -> list[list[str]]:
    # Half a surrogate pair, which recorded data holds, is no word to the package.
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return [_tokenizer().tokenize(line) for line in whole.split("\n") if line]


@functools.cache
def _tokenizer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer  # here: it imports nltk, which takes seconds

    return DefaultTokenizer(use_stemmer=False)
