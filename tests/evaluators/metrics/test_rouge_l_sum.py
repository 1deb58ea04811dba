"""ROUGE-Lsum is the package's, sentence by sentence, on random and on hostile texts."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from evaluators.scoring import score


@pytest.mark.parametrize("num_words", [2, 5, 40])
def test_it_is_the_packages(num_words: int, seed: int) -> None:
    draw = random.Random(seed)
    package = RougeScorer(["rougeLsum"], use_stemmer=False)
    words = [f"w{number}" for number in range(num_words)] + ["The", "the.", "-", "嗯"]

    def text() -> str:
        lines = (" ".join(draw.choices(words, k=draw.randrange(12))) for _ in range(draw.randrange(6)))
        return "\n".join(lines)

    for _ in range(60):
        gold, said = text(), text()
        expected = package.score(gold, said)["rougeLsum"].fmeasure
        assert score("rouge_l_sum", said, [gold]) == pytest.approx(expected, abs=1e-12), (gold, said)
        assert score("rouge_l_sum", said, ["x", gold]) == pytest.approx(expected, abs=1e-12)
