"""A row becomes one row that the result store takes; what is missing is null with its reason."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pyarrow as pa
import pytest

from jobs.planning.work import WorkUnit
from jobs.results.rescore import rescore
from jobs.results.rows import Failure, RowMaker, build_rows, failed_rows, score_columns
from jobs.results.schema import RESULT_SCHEMA, check_rows
from kvmerger.generation import Generation, Prompt, Question, VariantFailure
from tests.fakes.engine import (
    KNORM,
    NUM_KV_HEADS,
    NUM_LAYERS,
    FakeEngine,
    FakeInfo,
    FakeTokenizer,
    make_context,
    make_planned,
    make_unit,
)


def make_maker(unit: WorkUnit) -> RowMaker:
    return RowMaker(
        make_context(), unit.unit_id, unit.execution, 1700000000.5, FakeInfo(), "fused", "NVIDIA H200"
    )


def outcomes_of(unit: WorkUnit) -> list[Any]:
    questions = tuple(
        Question(it.tokens.tail_ids, it.tokens.gold_ids, it.item.max_new_tokens) for it in unit.items
    )
    prompt = Prompt(unit.items[0].tokens.context_ids, questions)
    return list(FakeEngine().run(prompt, unit.variants, execution="fused"))


def rows_of(unit: WorkUnit, outcomes: list[Any] | None = None) -> dict[str, dict[str, Any]]:
    """By variant, of a unit with one item; every row passes the store's own check."""
    outcomes = outcomes_of(unit) if outcomes is None else outcomes
    rows = build_rows(unit, outcomes, make_maker(unit), FakeTokenizer().decode)
    check_rows(unit.unit_id, rows)
    assert [row["identity"] for row in rows] == [key.identity for key in unit.row_keys]
    return {row["variant"]: row for row in rows}


def replaced(outcomes: list[Any], label: str, **changes: Any) -> list[Any]:
    return [dataclasses.replace(it, **changes) if it.label == label else it for it in outcomes]


def test_generation_becomes_a_scored_row_with_what_was_asked_and_measured() -> None:
    row = rows_of(make_unit("u"))[KNORM.label]
    assert (row["status"], row["prediction"], row["score"]) == ("ok", "w8 w9", 1.0)
    assert (row["kept_ratio"], row["slots"]) == (0.5, [[5] * NUM_KV_HEADS] * NUM_LAYERS)
    assert (row["budget_asked"], row["policy"], row["policy_version"]) == (
        '{"kept_ratio": 0.5}',
        "knorm",
        "3",
    )
    assert (row["context_tokens"], row["tail_tokens"], row["new_tokens"]) == (10, 2, 3)
    assert (row["model_revision"], row["device"], row["created_at_s"]) == ("fake-1", "cpu", 1700000000.5)
    assert (row["layers"], row["device_name"]) == ("fused", "NVIDIA H200")
    assert json.loads(row["counters"]) == {"asked_slots": 30, "num_evicted": 5.0}
    assert json.loads(row["trace"]) == [[0, "prefill", 100, 200]]
    assert row["peak_bytes"] is None
    assert "isolated" in row["peak_bytes_reason"]


def test_row_holds_what_is_asked_and_what_the_benchmark_knows_of_the_item() -> None:
    planned = make_planned("i")
    item = dataclasses.replace(
        planned.item,
        before_context="x" * 1000,
        context="\ud800 in the context. ",  # a lone surrogate, which parquet refuses
        after_context="Who? ",
        answer_prefix="It was",
        metadata={"depth_percent": 40, "haystack": "essays"},
    )
    rows = rows_of(make_unit("u", dataclasses.replace(planned, item=item)))
    for row in rows.values():
        assert row["prompt_tail"].endswith("x? in the context. Who? It was")
        assert 500 <= len(row["prompt_tail"]) < 1000
        assert json.loads(row["item_metadata"]) == {"depth_percent": 40, "haystack": "essays"}
    pa.Table.from_pylist(list(rows.values()), schema=RESULT_SCHEMA)


def test_failed_row_holds_what_was_asked_as_well() -> None:
    row = rows_of(make_unit("u"), [])["full"]
    assert (row["prompt_tail"], row["item_metadata"]) == ("textquestion", "{}")


def test_end_token_is_not_part_of_the_prediction_but_an_answer_cut_at_length_is_whole() -> None:
    unit = make_unit("u")
    cut = replaced(outcomes_of(unit), "full", token_ids=(8, 9), stop_reason="length")
    assert rows_of(unit, cut)["full"]["prediction"] == "w8 w9"
    ended = replaced(outcomes_of(unit), "full", token_ids=(8, 9), stop_reason="eos")
    assert rows_of(unit, ended)["full"]["prediction"] == "w8"


def test_cut_prompt_is_truncated_and_still_scored() -> None:
    row = rows_of(make_unit("u", make_planned("i", is_truncated=True)))["full"]
    assert (row["status"], row["score"]) == ("truncated", 1.0)


def test_questions_on_one_context_are_told_apart_by_their_index() -> None:
    other = make_planned("second", gold_ids=(9,), tail_ids=(3, 4, 5))
    unit = make_unit("u", make_planned("first"), other)
    rows = build_rows(unit, outcomes_of(unit)[::-1], make_maker(unit), FakeTokenizer().decode)
    found = {(row["item_id"], row["variant"]): (row["prediction"], row["tail_tokens"]) for row in rows}
    assert found["first", "full"] == ("w8 w9", 2)
    assert found["second", KNORM.label] == ("w9", 3)
    assert len(found) == len(unit.row_keys)


def test_a_row_without_outcome_is_a_failed_row() -> None:
    unit = make_unit("u")
    rows = rows_of(unit, [it for it in outcomes_of(unit) if it.label != KNORM.label])
    assert rows["full"]["status"] == "ok"
    assert (rows[KNORM.label]["status"], rows[KNORM.label]["failure_type"]) == ("failed", "MissingOutcome")


def test_failed_variant_keeps_phase_type_message_and_traceback() -> None:
    unit = make_unit("u")
    failure = VariantFailure(KNORM.label, 0, "compress", "BudgetError", "too small", "Traceback …")
    outcomes = [failure, *(it for it in outcomes_of(unit) if it.label != KNORM.label)]
    row = rows_of(unit, outcomes)[KNORM.label]
    columns = ("failure_phase", "failure_type", "failure_message", "failure_traceback")
    assert [row[column] for column in columns] == ["compress", "BudgetError", "too small", "Traceback …"]
    assert row["score"] is None


@pytest.mark.parametrize(
    ("field", "column", "reason"),
    [("answer_nll", "answer_nll", "answer_nll_reason"), ("kl_mean", "kl_mean", "fidelity_reason")],
)
def test_number_that_is_not_finite_is_null_with_its_reason(field: str, column: str, reason: str) -> None:
    unit = make_unit("u")
    row = rows_of(unit, replaced(outcomes_of(unit), "full", **{field: math.nan}))["full"]
    assert row[column] is None
    assert row[reason] == "not finite: nan"


def test_item_without_gold_answer_is_not_scored_and_says_why() -> None:
    planned = make_planned("i", gold_ids=())
    planned = dataclasses.replace(planned, item=dataclasses.replace(planned.item, answers=()))
    row = rows_of(make_unit("u", planned))["full"]
    assert row["score"] is None
    assert row["answer_nll"] is None
    assert row["score_reason"] == row["answer_nll_reason"] == "the item has no gold answer"


def test_row_says_why_its_answers_are_missing_in_the_words_of_the_benchmark() -> None:
    planned = make_planned("i", gold_ids=())
    hidden = dataclasses.replace(planned.item, answers=(), unscored_reason="the answers are hidden")
    row = rows_of(make_unit("u", dataclasses.replace(planned, item=hidden)))["full"]
    assert row["score_reason"] == row["answer_nll_reason"] == "the answers are hidden"


def test_a_gold_answer_that_does_not_fit_costs_the_nll_alone() -> None:
    planned = make_planned("i", gold_ids=(), no_gold_reason="too long")
    unit = make_unit("u", planned)
    said = replaced(outcomes_of(unit), "full", token_ids=(8, 9), stop_reason="length")
    row = rows_of(unit, said)["full"]
    assert (row["status"], row["score"], row["score_reason"]) == ("ok", 1.0, None)
    assert (row["answer_nll"], row["answer_nll_reason"]) == (None, "too long")
    assert row["kl_mean"] is not None


@pytest.mark.parametrize("metric", ["qa_f1", "classification", "code_sim", "rouge_geometric_mean"])
def test_row_holds_all_that_scoring_it_again_needs(metric: str) -> None:
    planned = make_planned("i")
    item = dataclasses.replace(planned.item, metric=metric, all_classes=("w8 w9", "w7"))
    row = rows_of(make_unit("u", dataclasses.replace(planned, item=item)))["full"]
    assert row["score"] == 1.0 and row["scorer"].startswith(metric)
    rescored = rescore([row], now_s=row["created_at_s"] + 1)
    assert rescored.rows == () and rescored.tasks[0].num_scored == 1


def test_metric_that_raises_fails_the_row_and_keeps_its_numbers() -> None:
    planned = make_planned("i")
    planned = dataclasses.replace(planned, item=dataclasses.replace(planned.item, metric="no_such_metric"))
    row = rows_of(make_unit("u", planned))["full"]
    assert (row["status"], row["failure_phase"], row["failure_type"]) == (
        "failed",
        "score",
        "UnknownNameError",
    )
    assert (row["score"], row["answer_nll"], row["prediction"]) == (None, 1.5, "w8 w9")


def test_failed_unit_owes_a_failed_row_per_key_even_without_a_model() -> None:
    unit = make_unit("u", make_planned("a"), make_planned("b"))
    maker = RowMaker(make_context(), "u", "fused", 1.0)
    rows = failed_rows(unit, Failure.of("actor", RuntimeError("gone")), maker)
    check_rows("u", rows)
    assert [row["identity"] for row in rows] == [key.identity for key in unit.row_keys]
    assert {row["model_revision"] for row in rows} == {"main"}
    assert all(row.keys() == set(RESULT_SCHEMA.names) for row in rows)


def test_outcomes_without_an_owed_row_are_left_out() -> None:
    unit = make_unit("u")
    assert {outcome.label for outcome in outcomes_of(unit)} > set(rows_of(unit))
    assert all(isinstance(outcome, Generation) for outcome in outcomes_of(unit))


def test_a_score_of_texts_that_were_cut_stands_and_says_so() -> None:
    short, long = (score_columns("code_sim", "x" * size, ["x"], ()) for size in (5_000, 5_001))
    assert short["score"] is not None and short["score_reason"] is None
    assert long["score"] == short["score"]
    assert "first 5,000 characters" in long["score_reason"] and "5,001" in long["score_reason"]
