"""The needle grid: every depth once a haystack, the needle between two sentences, contexts that fill their length."""

from __future__ import annotations

import pytest

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.needle.needle import DEPTHS_PERCENT, NEEDLE
from evaluators.prompting import num_prompt_tokens
from evaluators.registry import load_items
from evaluators.scoring import score
from tests.evaluators.conftest import MakeTokenizer

LENGTH = 1800


def test_every_depth_is_there_and_every_length_is_filled(make_tokenizer: MakeTokenizer, seed: int) -> None:
    tokenizer = make_tokenizer()
    spec = TaskSpec("needle/grid", length=LENGTH, limit=14, seed=seed)
    items = load_items(spec, tokenizer)
    assert [item.metadata["depth_percent"] for item in items] == [*DEPTHS_PERCENT, 0, 10, 20]
    assert len({item.item_id for item in items}) == len({item.context for item in items}) == 14
    for item in items:
        assert 0.7 * LENGTH < num_prompt_tokens(item, tokenizer) + item.max_new_tokens <= LENGTH
        before, found, after = item.context.partition(NEEDLE)
        assert found and NEEDLE not in after
        assert not before or before.rstrip()[-1] in ".!?\"')]\u2019\u201d", "not inside a sentence"
        share = 100 * len(before) / (len(before) + len(after))
        assert abs(share - item.metadata["depth_percent"]) < 12
    assert items[0].context.startswith(NEEDLE) and items[10].context.endswith(NEEDLE)
    assert items[:3] == load_items(TaskSpec(spec.name, length=LENGTH, limit=3, seed=seed), tokenizer)


def test_half_of_the_needle_is_half_of_the_score(make_tokenizer: MakeTokenizer) -> None:
    (item,) = load_items(TaskSpec("needle/grid", length=LENGTH, limit=1), make_tokenizer())
    for said, expected in ((NEEDLE, 1), ("Eat a sandwich.", 0.5), ("Walk.", 0)):
        assert score(item.metric, said, item.answers) == expected


def test_a_length_without_room_is_told(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(BenchmarkError, match="length 60 has no room; give at least"):
        load_items(TaskSpec("needle/grid", length=60), make_tokenizer())
