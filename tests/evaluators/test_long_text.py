"""Cut by characters or not, a text that is too long becomes the same tokens, and the tokenizer never sees most of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from evaluators import long_text
from evaluators.item import BenchmarkItem
from evaluators.long_text import CHARS_BEFORE_CUT, num_chars, without_middle
from evaluators.prompting import PromptError, QueryMode, tokenize_item
from tests.evaluators.conftest import CHAT_TEMPLATE, ITEM, MakeTokenizer

MOST_CHARS = 30_000


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "MOST_CHARS", MOST_CHARS)


def random_text(draw: random.Random, num_chars: int) -> str:
    words = [
        "river",
        "the mill",
        "burned",
        "é",
        "風",
        "  ",
        "\n\n",
        "42",
        "</s>",
        "a",
        "never destroyed",
        "🜁",
    ]
    alphabet = draw.choice([words, words[:4], [" "], ["ab", " "]])
    text = ""
    while len(text) < num_chars:
        text += "".join(draw.choices(alphabet, k=500))
    return text[:num_chars]


def long_item(draw: random.Random, **changes: Any) -> BenchmarkItem:
    return replace(ITEM, context=random_text(draw, draw.randint(60_000, 90_000)), **changes)


@pytest.mark.parametrize("normalizer", [None, "NFC"])
@pytest.mark.parametrize("separator", [None, "... [the rest is left out]\n"])
def test_the_prompt_has_the_same_tokens_as_without_the_cut(
    make_tokenizer: MakeTokenizer, separator: str | None, normalizer: str | None, seed: int
) -> None:
    draw = random.Random(seed)
    tokenizer = make_tokenizer(adds_bos=True, chat_template=CHAT_TEMPLATE, normalizer=normalizer)
    for _ in range(4):
        item, limit = long_item(draw, truncation_separator=separator), draw.randint(60, 900)
        short = without_middle(item, tokenizer, limit)
        assert num_chars(short) < num_chars(item) == short.metadata[CHARS_BEFORE_CUT]
        cut, whole = (tokenize_item(it, tokenizer, QueryMode.AGNOSTIC, limit) for it in (short, item))
        assert cut.is_truncated and whole.is_truncated
        assert (cut.context_ids, cut.tail_ids, cut.gold_ids) == (
            whole.context_ids,
            whole.tail_ids,
            whole.gold_ids,
        )


class Counting:
    """A tokenizer that notes the longest text it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.longest = 0

    def __call__(self, text: str, **options: Any) -> Mapping[str, Any]:
        self.longest = max(self.longest, len(text))
        return self._tokenizer(text, **options)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("word", ["word ", " ", "x"])
def test_the_tokenizer_sees_as_much_of_a_longer_text(make_tokenizer: MakeTokenizer, word: str) -> None:
    longest = []
    for size in (200_000, 2_000_000):
        tokenizer = Counting(make_tokenizer())
        item = replace(ITEM, context=word * (size // len(word)))
        tokenize_item(without_middle(item, tokenizer, 400), tokenizer, QueryMode.AGNOSTIC, 400)
        longest.append(tokenizer.longest)
    assert longest[0] == longest[1] < 50_000


@pytest.mark.parametrize("limit", [-(10**12), 0, 2])
def test_a_limit_that_leaves_nothing_is_no_trouble_here(make_tokenizer: MakeTokenizer, limit: int) -> None:
    tokenizer = Counting(make_tokenizer())
    without_middle(replace(ITEM, context="word " * 100_000), tokenizer, limit)
    assert tokenizer.longest < 50_000


def test_a_normal_text_a_generated_one_and_one_that_is_read_whole_stay(
    make_tokenizer: MakeTokenizer, seed: int
) -> None:
    tokenizer, draw = make_tokenizer(), random.Random(seed)
    normal = replace(ITEM, context="x" * (MOST_CHARS - num_chars(replace(ITEM, context=""))))
    for item, limit in (
        (normal, 10),
        (long_item(draw, is_generated=True), 10),
        (long_item(draw), 500_000),
    ):
        assert without_middle(item, tokenizer, limit) is item


@pytest.mark.parametrize(("field", "word"), [("after_context", "behind"), ("before_context", "before")])
def test_what_is_no_context_and_too_long_is_refused(
    make_tokenizer: MakeTokenizer, field: str, word: str
) -> None:
    item = replace(ITEM, **{field: "x" * (MOST_CHARS + 1)})
    with pytest.raises(PromptError, match=f"text {word} the context has 30,001 characters"):
        without_middle(item, make_tokenizer(), 100)
