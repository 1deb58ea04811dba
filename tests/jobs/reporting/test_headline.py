"""The sentence is true of the rows: too few are called too few, and nobody is ranked by them."""

import random

import pyarrow as pa
import pytest

from jobs.analysis.differences import NO_SCALE, differences_to_full
from jobs.analysis.folder.findings import Findings
from jobs.analysis.summary import summarize
from jobs.reporting.headline import headline, headline_of
from jobs.results.schema import RESULT_SCHEMA, Row
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


@pytest.mark.parametrize("num_tasks", [2, 7])
def test_tasks_with_few_contexts_are_judged_by_their_mean(num_tasks: int, seed: int) -> None:
    tasks = [f"b/{index}" for index in range(num_tasks)]
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.1": 0.1}, tasks, 49)
    text = sentence_of(rows)
    assert text.startswith(
        "2 of 2 variants predict the right answer measurably worse than the full cache on the mean of "
        f"{num_tasks} tasks ({49 * num_tasks} contexts)."
    )
    assert "A task alone has as few as 49 contexts, too few for a verdict (50 are needed)." in text
    assert "Too few to rank" not in text


def test_it_begins_with_the_cheapest_certified_variant_and_what_is_promised(seed: int) -> None:
    found = headline_of(findings_of(certifiable(seed, 130, 1.0)))
    (text,) = found
    assert text.startswith("Cheapest certified: a@0.5, 50.0% of the full cache's bytes")
    assert (
        "; shown, with 95% confidence, to lose more than 0.1 of score on at most 5% of contexts like these. "
        in text
    )
    (plain,) = headline_of(
        findings_of([row for row in certifiable(seed, 130, 1.0) if row["variant"] != "full"])
    )
    assert "certified" not in plain


def test_it_begins_with_the_full_cache_where_nothing_is_certified_and_with_how_many_are_needed(
    seed: int,
) -> None:
    (lossy,) = headline_of(findings_of(certifiable(seed, 130, 0.0)))
    assert lossy.startswith(
        "Nothing is certified: keep the full cache; no variant is shown to lose more than 0.1 of score on at most 5% of "
        "contexts. "
    )
    (few,) = headline_of(findings_of(certifiable(seed, 20, 1.0)))
    assert few.startswith(
        "No certificate: 20 contexts are too few, even if none were lost 59 are needed to show "
    )


def test_worse_than_without_any_context_is_no_negative_share(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.1": 0.1}, ["b/t", "b/u"], 60)
    far = [row | {"answer_nll": row["answer_nll"] + 40 * (row["variant"] == "b@0.1")} for row in rows]
    assert "from less than nothing (b@0.1) to " in sentence_of(far)


def certifiable(seed: int, num_items: int, score: float) -> list[Row]:
    """One policy of that score everywhere; the full cache has 1 and no context 0."""
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5}, ["b/t"], num_items)
    scores = {"full": 1.0, "full_aa": 1.0, "a@0.5": score}
    return [row | {"score": scores.get(row["variant"], 0.0)} for row in rows]


def findings_of(rows: list[Row]) -> Findings:
    return Findings.of(pa.Table.from_pylist(rows, schema=RESULT_SCHEMA))
