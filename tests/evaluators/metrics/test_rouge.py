"""Our ROUGE-L is the package's in every bit, its failures included, and does not depend on the caller's stack."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
from rouge import Rouge

from evaluators.metrics.rouge import rouge_l

# The frames of the authors' eval.py: module, scorer, rouge_score; one more for Chinese.
OFFICIAL_CALL = """
import json, sys
from rouge import Rouge
def rouge_score(prediction, answer):
    try:
        return Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except:
        return 0.0
def rouge_zh_score(prediction, answer):
    return rouge_score(prediction, answer)
def scorer(function, pairs):
    scores = []
    for prediction, answer in pairs:
        scores.append(function(prediction, answer))
    return scores
function, pairs = json.load(sys.stdin)
found = scorer(globals()[function], pairs)
print(json.dumps(found))
"""


def package_score(prediction: str, answer: str) -> float:
    try:
        return float(Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"])
    except ValueError:  # no sentence
        return 0.0


def random_text(draw: random.Random) -> str:
    vocabulary = draw.choice(["ab", "abcdef", "abcdefghijklmnopqrst"])
    gaps = [" ", " ", " ", "  ", ".", ". ", " . ", "\n", "..", "\u3000"]
    words = ["".join(draw.choices(vocabulary, k=draw.choice([1, 1, 2]))) for _ in range(draw.randint(0, 60))]
    return "".join(part for word in words for part in (word, draw.choice(gaps)))


def test_scores_are_the_packages_on_random_texts(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(400):
        prediction, answer = random_text(draw), random_text(draw)
        assert rouge_l(prediction, answer) == package_score(prediction, answer), (prediction, answer)


@pytest.mark.parametrize(("function", "extra_frames"), [("rouge_score", 0), ("rouge_zh_score", 1)])
def test_texts_too_long_for_the_packages_recursion_score_0_from_the_same_word_on(
    function: str, extra_frames: int, seed: int
) -> None:
    draw = random.Random(seed)
    pairs = []
    for num_words in range(970, 1000):  # around the limit, where one word decides
        gold = draw.choices("abcd", k=draw.randint(1, 6))
        long = [*gold, *draw.choices("wxyz", k=num_words)]  # found at the far end of the trace-back
        pairs += [(" ".join(long), " ".join(gold)), (" ".join(gold), " ".join(long))]
    done = subprocess.run(
        [sys.executable, "-c", OFFICIAL_CALL],
        input=json.dumps([function, pairs]),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(done.stdout)
    assert [rouge_l(*pair, extra_frames=extra_frames) for pair in pairs] == expected
    assert min(expected) == 0.0 < max(expected)
