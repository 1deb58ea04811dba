"""ROUGE as SCROLLS and ZeroSCROLLS report it: one number of ROUGE-1, ROUGE-2 and ROUGE-L (arXiv:2305.14196, section 3).

Each of the three is the F of google's `rouge_score`, without stemming, at the reference where it is best. The published
number is the geometric mean of the three corpus means; an item's own score is the geometric mean of its three.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from evaluators.scoring import register_metric_of_parts

_TYPES = ("rouge1", "rouge2", "rougeL")


def geometric_mean(parts: Mapping[str, float]) -> float:
    """Geometric mean of the parts; 0 when any is 0."""
    return math.prod(parts.values()) ** (1 / len(parts))


@register_metric_of_parts("rouge_geometric_mean", geometric_mean, details="no stemmer", package="rouge_score")
def rouge_geometric_mean(
    prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()
) -> dict[str, float]:
    """The best `rouge1`, `rouge2` and `rougeL` over the answers, each 0 to 1 and each at its own best answer."""
    found = [_scorer().score(_plain(answer), _plain(prediction)) for answer in answers]
    return {name: max(float(scores[name].fmeasure) for scores in found) for name in _TYPES}


def _plain(text: str) -> str:
    # The package encodes its input; half a surrogate pair, which recorded data holds, is no word anyway.
    return text.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # here: it imports nltk, which takes seconds

    return RougeScorer(list(_TYPES), use_stemmer=False)
