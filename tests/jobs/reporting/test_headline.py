"""The sentence is true of the rows: too few are called too few, and nobody is ranked by them."""

import random

import pytest

from jobs.analysis.differences import differences_to_full
from jobs.analysis.summary import summarize
from jobs.reporting.headline import headline
from jobs.results.schema import Row
from tests.fakes.rows import make_sweep_rows


def sentence_of(rows: list[Row]) -> str:
    (found,) = headline(summarize(rows), differences_to_full(rows))
    return found


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_few_contexts_are_called_too_few_and_nobody_is_said_to_be_worse(num_tasks: int, seed: int) -> None:
    tasks = [f"b/{index}" for index in range(num_tasks)]
    text = sentence_of(make_sweep_rows(random.Random(seed), {"a@0.5": 0.5}, tasks, 10))
    assert text.startswith("Too few to rank policies by (") and "10 contexts" in text
    assert "measurably" not in text
    one = sentence_of(make_sweep_rows(random.Random(seed), {"a@0.5": 0.5}, tasks, 1))
    assert "1 context" in one and "1 contexts" not in one


def test_enough_contexts_give_a_verdict_with_the_range(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.1": 0.1}, ["b/t"], 60)
    text = sentence_of(rows)
    assert text.startswith("2 of 2 variants predict the right answer measurably worse")
    assert "10% to 50% of it kept" in text and text.index("a@0.5") < text.index("b@0.1")


def test_over_tasks_the_share_of_the_contexts_worth_is_told(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.1": 0.1}, ["b/t", "b/u"], 60)
    text = sentence_of(rows)
    assert "mean of all tasks" in text and text.index("b@0.1") < text.index("a@0.5")


def test_references_alone_compare_nothing(seed: int) -> None:
    assert "no policy to compare" in sentence_of(make_sweep_rows(random.Random(seed), {}, ["b/t"], 3))
