"""RULER items hide one needle at the promised depth and fill the promised length, whatever the limit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.ruler.filler import load_haystack
from evaluators.item import BenchmarkItem
from evaluators.prompting import QueryMode, num_prompt_tokens, tokenize_item
from evaluators.registry import load_items
from tests.evaluators.conftest import CHAT_TEMPLATE, LoadTask, MakeTokenizer

NAME = "ruler/niah_single_2"


@pytest.fixture
def load(make_tokenizer: MakeTokenizer) -> LoadTask:
    def load_task(**options: object) -> list[BenchmarkItem]:
        spec = TaskSpec(NAME, **({"length": 1500, "limit": 4, "max_new_tokens": 16} | options))  # type: ignore[arg-type]
        return load_items(spec, make_tokenizer(chat_template=CHAT_TEMPLATE))

    return load_task


def test_wording_is_the_official_one(load: LoadTask) -> None:
    item = load(limit=1)[0]
    pattern = (
        r"A special magic number is hidden within the following text\. Make sure to memorize it\. "
        r"I will quiz you about the number afterwards\.\n"
        r".*One of the special magic numbers for (?P<key>.+-.+) is: (?P<value>\d{7})\..*"
        r"\nWhat is the special magic number for (?P=key) mentioned in the provided text\?"
    )
    match = re.fullmatch(pattern, item.prompt_text)
    assert match is not None
    assert item.answers == (match["value"],)
    key = match["key"]
    assert item.answer_prefix == f" The special magic number for {key} mentioned in the provided text is"


def test_the_official_length_of_answer_is_the_default(load: LoadTask) -> None:
    assert load(max_new_tokens=None, length=2000, limit=1)[0].max_new_tokens == 128


@pytest.mark.parametrize("length", [900, 1500, 4000])
def test_length_is_filled_as_far_as_whole_sentences_allow(
    load: LoadTask, make_tokenizer: MakeTokenizer, length: int
) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    sentences = load_haystack(None).sentences
    for item in load(length=length):
        used = num_prompt_tokens(item, tokenizer) + item.max_new_tokens
        following = sentences[int(item.metadata["num_sentences"])]
        num_following_tokens = len(tokenizer(" " + following)["input_ids"])
        assert used <= length < used + num_following_tokens + 1


@pytest.mark.parametrize("mode", QueryMode)
def test_prompt_and_answer_fit_the_length_as_the_model_sees_them(
    load: LoadTask, make_tokenizer: MakeTokenizer, mode: QueryMode
) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    for item in load():
        assert item.is_generated  # so that no plan cuts its needle away
        prompt = tokenize_item(item, tokenizer, mode, 1500)
        assert len(prompt.context_ids) + len(prompt.tail_ids) + item.max_new_tokens <= 1500


def test_items_do_not_depend_on_the_limit(load: LoadTask) -> None:
    assert load(limit=6)[:4] == load(limit=4)


def test_depths_are_the_40_official_ones_in_a_shuffled_order(load: LoadTask) -> None:
    depths = [item.metadata["depth_percent"] for item in load(limit=80, length=700)]
    assert sorted(depths[:40]) == sorted(depths[40:]) == [round(100 * step / 39) for step in range(40)]
    assert depths[:40] != sorted(depths[:40])
    assert depths[:40] != depths[40:]


def test_needle_lies_at_its_depth(load: LoadTask) -> None:
    for item in load(length=6000):
        num_sentences, depth = int(item.metadata["num_sentences"]), int(item.metadata["depth_percent"])
        before = item.context.split("One of the special magic numbers")[0].strip()
        assert before == " ".join(load_haystack(None).sentences[: num_sentences * depth // 100])


def test_seed_changes_needles_and_ids_but_not_the_prose(load: LoadTask) -> None:
    one, other = load(seed=1)[0], load(seed=2)[0]
    assert one.item_id == "ruler/niah_single_2/1500/seed1/pydoc_topics/0"
    assert other.item_id == "ruler/niah_single_2/1500/seed2/pydoc_topics/0"
    assert one.answers != other.answers
    assert one.after_context != other.after_context


def test_own_haystack_is_used_labelled_and_repeated_when_short(load: LoadTask, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("The sun was low. A dog slept in the sand.")
    item = load(haystack=str(tmp_path / "short.txt"), limit=1)[0]
    assert item.metadata["haystack"] == "short"
    assert "/short/" in item.item_id
    assert item.context.count("A dog slept in the sand.") > 20


def test_a_length_without_room_says_how_much_is_needed(load: LoadTask) -> None:
    with pytest.raises(BenchmarkError, match=r"length 50 has no room for haystack.*give more than"):
        load(length=50)
