"""ROUGE as SCROLLS and ZeroSCROLLS report it: one number of ROUGE-1, ROUGE-2 and ROUGE-L (arXiv:2305.14196, section 3).

Each of the three is the F of google's `rouge_score`, without stemming, at the reference where it is best. The published
number is the geometric mean of the three corpus means; an item's own score is the geometric mean of its three.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from evaluators.metrics.common_subsequence import common_length
from evaluators.scoring import register_metric_of_parts

_NGRAMS, _LONGEST = ("rouge1", "rouge2"), "rougeL"
MOST_CHARS = 100_000
"""The longest common subsequence costs the product of both lengths; recorded texts have at most 8,879 characters."""


def geometric_mean(parts: Mapping[str, float]) -> float:
    """Geometric mean of the parts; 0 when any is 0."""
    return math.prod(parts.values()) ** (1 / len(parts))


@register_metric_of_parts(
    "rouge_geometric_mean", geometric_mean, details="no stemmer", package="rouge_score", max_chars=MOST_CHARS
)
def rouge_geometric_mean(
    prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()
) -> dict[str, float]:
    """The best `rouge1`, `rouge2` and `rougeL` over the answers, each 0 to 1 and each at its own best answer."""
    found = [_parts(_plain(prediction), _plain(answer)) for answer in answers]
    return {name: max(parts[name] for parts in found) for name in (*_NGRAMS, _LONGEST)}


def _parts(prediction: str, answer: str) -> dict[str, float]:
    from rouge_score.scoring import fmeasure

    scores = _scorer().score(answer, prediction)
    parts = {name: float(scores[name].fmeasure) for name in _NGRAMS}
    # The package fills a table of words by words for this one, 11 GiB for 100,000 characters.
    predicted, gold = (_tokenizer().tokenize(text) for text in (prediction, answer))
    common = common_length(gold, predicted)
    parts[_LONGEST] = fmeasure(common / len(predicted), common / len(gold)) if common else 0.0
    return parts


def _plain(text: str) -> str:
    # The package encodes its input; half a surrogate pair, which recorded data holds, is no word anyway.
    return text.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # here: it imports nltk, which takes seconds

    return RougeScorer(list(_NGRAMS), use_stemmer=False)


@functools.cache
def _tokenizer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=False)
