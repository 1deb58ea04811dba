"""ZeroSCROLLS' ROUGE: three numbers at their best references, one number of an item, another one of a corpus."""

from __future__ import annotations

import random
import re
from collections import Counter
from statistics import fmean

import pytest

from evaluators.scoring import MetricError, corpus_score, score_item, scorer_label

NAME = "rouge_geometric_mean"
WORDS = ["the", "crew", "reached", "land", "sails", "sail", "Storm", "night", "mill", "it's", "-", "7"]


def slow_parts(prediction: str, answers: list[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L by their definitions (Lin 2004), no stemming."""
    found = []
    for answer in answers:
        predicted, gold = (re.findall("[a-z0-9]+", text.lower()) for text in (prediction, answer))
        parts = {f"rouge{n}": f1(*(Counter(ngrams(words, n)) for words in (predicted, gold))) for n in (1, 2)}
        common = longest_common(predicted, gold)
        parts["rougeL"] = 2 * common / (len(predicted) + len(gold)) if common else 0.0
        found.append(parts)
    return {name: max(parts[name] for parts in found) for name in found[0]}


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def f1(one: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]]) -> float:
    common = (one & other).total()
    return 2 * common / (one.total() + other.total()) if common else 0.0


def longest_common(one: list[str], other: list[str]) -> int:
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return 1 + longest_common(one[:-1], other[:-1])
    return max(longest_common(one[:-1], other), longest_common(one, other[:-1]))


def texts(random_numbers: random.Random, count: int) -> list[str]:
    return [" ".join(random_numbers.choices(WORDS, k=random_numbers.randrange(1, 8))) for _ in range(count)]


def test_item_and_corpus_scores_are_those_of_the_definition(seed: int) -> None:
    random_numbers, slow, fast = random.Random(seed), [], []
    for _ in range(40):
        prediction, *answers = texts(random_numbers, 4)
        slow.append(slow_parts(prediction, answers))
        got = score_item(NAME, prediction, answers)
        assert got.parts == pytest.approx(slow[-1], abs=1e-12)
        one, two, longest = slow[-1].values()
        assert got.value == pytest.approx((one * two * longest) ** (1 / 3), abs=1e-12)
        fast.append(got.parts)
    means = [fmean(parts[name] for parts in slow) for name in ("rouge1", "rouge2", "rougeL")]
    assert corpus_score(NAME, fast) == pytest.approx((means[0] * means[1] * means[2]) ** (1 / 3), abs=1e-12)


def test_published_number_is_no_mean_of_item_scores() -> None:
    """One item with a bigram in common and one without: their mean is 0.5, the published number is not."""
    items = [score_item(NAME, text, ["reached land"]) for text in ("reached land", "land reached")]
    assert fmean(item.value for item in items) == 0.5
    assert corpus_score(NAME, [item.parts for item in items]) == pytest.approx((1 * 0.5 * 0.75) ** (1 / 3))


def test_corpus_of_nothing_is_refused_and_a_mean_has_no_other_number() -> None:
    with pytest.raises(MetricError, match="no item"):
        corpus_score(NAME, [])
    assert corpus_score("qa_f1", [{}]) is None


def test_scorer_is_named_with_its_version() -> None:
    assert re.fullmatch(r"rouge_geometric_mean \(rouge_score \d+\.\d+\.\d+, no stemmer\)", scorer_label(NAME))
