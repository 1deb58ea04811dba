"""The sentence is true of the rows: too few are called too few, and nobody is ranked by them."""

import random

import pytest

from jobs.analysis.differences import NO_SCALE, differences_to_full
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
    assert "10% to 50% of its bytes held" in text and text.index("a@0.5") < text.index("b@0.1")


def test_over_tasks_the_share_of_the_contexts_worth_is_told(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.1": 0.1}, ["b/t", "b/u"], 60)
    text = sentence_of(rows)
    assert "mean of all tasks" in text and text.index("b@0.1") < text.index("a@0.5")


def flat(rows: list[Row], *tasks: str) -> list[Row]:
    """The same rows, but on these tasks the context is worth nothing."""
    return [
        row | {"answer_nll": 1.0 + len(row["item_id"]) % 2} if row["task"] in tasks else row for row in rows
    ]


def test_where_no_task_can_tell_anything_there_is_no_reassuring_count(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.1": 0.1}, ["b/t", "b/u", "b/v"], 60)
    text = sentence_of(flat(rows, "t", "u", "v"))
    assert text.startswith(
        f"No verdict is possible on any of 3 tasks: {NO_SCALE}, so these items do not test the cache."
    )
    assert "measurably" not in text and "no difference is proven" not in text


def test_tasks_that_test_nothing_are_named_and_not_counted(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.1": 0.1}, ["b/t", "b/u", "b/v"], 60)
    text = sentence_of(flat(rows, "u"))
    assert text.startswith(
        "2 of 2 variants predict the right answer measurably worse than the full cache on some task of the 2 out of 3 that "
        f"test the cache (not b/u: {NO_SCALE})."
    )


def test_answers_that_were_never_measured_are_not_called_no_better(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5}, ["b/t"], 60)
    text = sentence_of([row | {"answer_nll": None} for row in rows])
    assert text.startswith(
        "No verdict is possible: the full-cache and the no-context rows have no answer NLL"
    )


def test_references_alone_compare_nothing(seed: int) -> None:
    assert "no policy to compare" in sentence_of(make_sweep_rows(random.Random(seed), {}, ["b/t"], 3))
