"""Metrics on what a model may write without end: the same numbers, in n log n steps or of a beginning that the row names.

Steps are counted, not seconds: lines of Python for loops of ours, and what a metric is given for those that are cut.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import jieba
import pytest

from evaluators import scoring
from evaluators.metrics import concordance_index, exp_similarity
from evaluators.metrics.chinese_words import cut_words
from evaluators.metrics.common_subsequence import common_length
from evaluators.scoring import list_metrics, score_item
from tests.slow import scoring as slow

WORDS = {
    "digits": "7",
    "numbers": "12, 7. ",
    "prose": "The crew reached land at night. ",
    "code": "x = f(y) + 1;",
    "signs": "嗯",
    "many signs": "海上风暴渔船夜里回港",
    "percent": "1.2.3%",
    "blanks": " ",
    "newlines": "\n",
}
GROWS_BY = 2.6  # n log n doubles and a little more; a square would be 4


def num_lines(run: Callable[[], Any]) -> int:
    """Lines of Python that are run below `run`."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("name", list_metrics())
def test_steps_grow_no_faster_than_n_log_n_or_the_text_is_cut(name: str, kind: str) -> None:
    unit, answers = WORDS[kind], ["7%", "Paragraph 7", "段落7", "海上", "1, 2", "A"]
    score_item(name, unit, answers, ("A", "B"))  # dictionaries are loaded
    short, long = (unit * (size // len(unit)) for size in (1500, 3000))
    steps = [
        num_lines(lambda text=text: score_item(name, text, answers, ("A", "B"))) for text in (short, long)
    ]
    assert steps[1] <= GROWS_BY * steps[0] + 500


@pytest.mark.parametrize("name", list_metrics())
def test_no_metric_is_given_more_than_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, seen = scoring._scorers[name], []
    limit = scorer.max_chars or 200_000
    metric = scorer.metric or scorer.parts_metric

    def record(prediction: str, answers: list[str], all_classes: Any) -> Any:
        seen.extend(map(len, (prediction, *answers)))
        return metric("A", ["A"], ("A",))

    field = "metric" if scorer.metric else "parts_metric"
    changed = {it: getattr(scorer, it) for it in scorer.__slots__} | {field: record}
    monkeypatch.setitem(scoring._scorers, name, type(scorer)(**changed))
    found = score_item(name, "x" * (limit + 1), ["y", "z" * (limit + 2)])
    if scorer.max_chars is None:
        assert max(seen) == limit + 2 and found.note == ""
        return
    assert seen == [limit, 1, limit]
    assert f"first {limit:,} characters" in found.note and f"{limit + 2:,}" in found.note
    assert score_item(name, "x" * limit, ["y"]).note == ""


@pytest.mark.parametrize("name", list_metrics())
def test_very_long_texts_are_scored(name: str) -> None:
    """Before, several of these took minutes to days, or all of the memory."""
    for unit in ("7", "嗯", "a b c. ", "海上风暴渔船夜里回港"):
        value = score_item(
            name, unit * (60_000 // len(unit)), [unit * (20_000 // len(unit)), "7%"], ("A",)
        ).value
        assert 0.0 <= value <= 1.0


def test_percentages_are_those_of_the_authors_pattern(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(5000):
        text = "".join(draw.choices("07..% a٣", k=draw.randrange(14)))
        found = exp_similarity._PERCENTAGE.search(text)
        assert (found[1] if found else None) == slow.first_percentage(text), text


def test_concordance_is_that_of_all_pairs(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(300):
        gold = [str(number) for number in draw.choices(range(6), k=draw.randrange(12))]
        predicted = draw.sample(gold, len(gold))
        assert concordance_index.order_concordance(predicted, gold) == slow.order_concordance(predicted, gold)


def test_common_length_is_that_of_the_table(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(300):
        one, other = (draw.choices("abcde", k=draw.randrange(40)) for _ in range(2))
        assert common_length(one, other) == slow.common_length(one, other)


def test_rouge_l_is_the_packages_in_every_bit(seed: int) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    draw, package = random.Random(seed), RougeScorer(["rouge1", "rouge2", "rougeL"])
    for _ in range(200):
        prediction, answer = (
            " ".join(draw.choices(["a", "B", "é", "sail", "7"], k=draw.randrange(30))) for _ in range(2)
        )
        expected = {name: it.fmeasure for name, it in package.score(answer, prediction).items()}
        assert dict(score_item("rouge_geometric_mean", prediction, [answer]).parts) == expected


def test_words_are_jiebas(seed: int) -> None:
    draw = random.Random(seed)
    pool = "海上风暴渔船夜里回港他来到了网易杭研大厦小明硕士毕业于中国科学院计算所嗯的了在"
    rare = "".join(map(chr, draw.sample(range(0x4E00, 0x9FD5), 60)))
    for _ in range(400):
        alphabet = draw.choice(
            [pool, rare, pool + rare, pool + "abcXYZ 019.%+#&_-、。\r\n\u3000é", "ab 1.5%\r\n-"]
        )
        text = "".join(draw.choices(alphabet, k=draw.randrange(60)))
        assert cut_words(text) == list(jieba.cut(text, cut_all=False)), text
