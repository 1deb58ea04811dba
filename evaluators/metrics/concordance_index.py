"""Share of pairs in the right order (concordance index of ZeroSCROLLS' book_sum_sort, arXiv:2305.14196)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from evaluators.metrics.best_answer import best_over_answers
from evaluators.scoring import register_metric

_NOT_A_LIST = re.compile(r"[^0-9\s,]")


def listed_ids(text: str) -> list[str]:
    """The numbers of a list in order, whatever else is deleted ("Summary 3, 1." reads 3, 1 and "1.2" reads 12)."""
    return [number.lstrip("0") for number in _NOT_A_LIST.sub("", text).replace(",", " ").split()]


def order_concordance(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Share of the gold's pairs that the prediction has in the same order; an id listed twice counts half.

    0 unless both list the same ids, each equally often; 1 for one id, which has no pairs; 0 for none.
    """
    if sorted(predicted) != sorted(gold) or not gold:
        return 0.0
    if len(gold) == 1:
        return 1.0
    # Of an id listed twice the last place counts, for both of its occurrences in the gold: their pair is a tie.
    place = {number: index for index, number in enumerate(predicted)}
    places = [place[number] for number in gold]
    ties = sum(count * (count - 1) // 2 for count in Counter(places).values())
    num_pairs = len(gold) * (len(gold) - 1) // 2
    return (_num_ascending_pairs(places) + 0.5 * ties) / num_pairs


def _num_ascending_pairs(values: Sequence[int]) -> int:
    """How many pairs have the smaller value first; n log n, by merging sorted halves."""
    found = 0
    runs = [[value] for value in values]
    while len(runs) > 1:
        merged = []
        for left, right in zip(runs[::2], [*runs[1::2], []], strict=False):
            index = 0
            for value in right:
                while index < len(left) and left[index] < value:
                    index += 1
                found += index
            merged.append(sorted(left + right))  # two sorted runs: the sort only merges them
        runs = merged
    return found


@register_metric("concordance_index")
def concordance_index(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best `order_concordance` of the listed ids over the answers, 0 to 1; chance gives 0.5."""
    predicted = listed_ids(prediction)
    return best_over_answers(lambda answer: order_concordance(predicted, listed_ids(answer)), answers)
