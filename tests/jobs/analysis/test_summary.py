"""The summary: means of what is there, never over nothing, never over rows that do not belong together."""

import random
import statistics
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from evaluators.statistics.intervals import mean_interval
from jobs.analysis.folder.findings import Findings
from jobs.analysis.summary import ResultSummary, macro_intervals, series_name
from jobs.analysis.variant_summary import VariantSummary
from jobs.planning.work import RowKey
from jobs.reporting.notation import shown_label
from jobs.results.planned import planned_rows, planned_table
from jobs.results.schema import FAILED, RESULT_SCHEMA, TRUNCATED, ResultError, Row
from tests.fakes.rows import make_row, make_sweep_rows

NLL = {"full": 0.5, "no_context": 2.5, "full_aa": 0.5, "knorm@0.5": 1.0}


def rows_of(labels: Sequence[str] = tuple(NLL), num_items: int = 3, **values: Any) -> list[Row]:
    """Rows of every label on every item; an item's NLL is the label's plus its index."""
    return [
        make_row(
            f"{values.get('task', 'task')}/{values.get('query_mode', '')}/{index}/{label}",
            item_id=f"{values.get('task', 'task')}/{index}",
            cluster_id=f"c{index}",
            variant=label,
            policy=label.partition("@")[0],
            answer_nll=NLL[label] + index,
            score=float(index == 0),
            kept_ratio=0.5,
            kv_bytes=1000,
        )
        | values
        for label in labels
        for index in range(num_items)
    ]


def summary_of(rows: Sequence[Row], planned: Sequence[RowKey] | None = None) -> ResultSummary:
    return Findings.of(pa.Table.from_pylist(list(rows), schema=RESULT_SCHEMA), planned).summary


def variant(summary: ResultSummary, label: str = "knorm@0.5") -> VariantSummary:
    return next(it for task in summary.tasks for it in task.variants if it.label == label)


def test_means_and_intervals_are_those_of_the_items() -> None:
    found = variant(summary_of(rows_of()))
    assert found.answer_nll is not None and found.answer_nll.mean == pytest.approx(1.0 + 1.0)
    assert found.answer_nll.num_clusters == 3 and found.answer_nll.is_too_few
    assert found.kl is None and found.top1_agreement is None
    assert (found.num_right, found.kept_ratio, found.kv_bytes) == (1, 0.5, 1000)


@pytest.mark.parametrize(("num_items", "method"), [(19, None), (20, "hall_skewed_t"), (250, "hall_skewed_t")])
def test_kl_has_the_interval_of_skewed_means_and_no_other_number_has(
    num_items: int, method: str | None
) -> None:
    rows = [
        row | {"kl_mean": 0.01 + (int(row["cluster_id"][1:]) % 10 == 0)}
        for row in rows_of(num_items=num_items)
    ]
    found = variant(summary_of(rows))
    assert found.kl is not None and found.answer_nll is not None and found.score is not None
    assert (found.kl.method if found.kl.ends else None) == method
    of_t = mean_interval([row["kl_mean"] for row in rows[:num_items]], range(num_items))
    assert found.kl.mean == pytest.approx(of_t.mean)
    if num_items == 20:
        assert found.kl.high is not None and of_t.high is not None and found.kl.high > of_t.high
    ordinary = "student_t" if num_items < 200 else "bca_cluster_bootstrap"
    assert found.answer_nll.method == found.score.method == ordinary


def test_recovered_nll_is_one_for_full_and_zero_without_context() -> None:
    summary = summary_of(rows_of())
    assert [variant(summary, label).nll_recovered for label in NLL] == pytest.approx([1.0, 0.0, 1.0, 0.75])


def test_recovered_nll_uses_only_items_that_all_three_have() -> None:
    rows = rows_of()
    lost = next(row for row in rows if row["variant"] == "knorm@0.5" and row["item_id"] == "task/2")
    lost |= {"status": FAILED, "failure_phase": "x", "failure_type": "y", "answer_nll": None}
    assert variant(summary_of(rows)).nll_recovered == pytest.approx(0.75)


def test_there_is_no_scale_when_the_full_cache_does_not_beat_no_context() -> None:
    rows = [row | {"answer_nll": 1.0} for row in rows_of()]
    summary = summary_of(rows)
    assert not summary.tasks[0].has_scale and variant(summary).nll_recovered is None


def test_there_is_no_scale_when_the_full_cache_beats_no_context_only_on_average() -> None:
    rows = rows_of()
    for index, row in enumerate(row for row in rows if row["variant"] == "no_context"):
        row["answer_nll"] = 60.0 if index == 0 else 0.0
    summary = summary_of(rows)
    assert not summary.tasks[0].has_scale and variant(summary).nll_recovered is None


def test_scores_between_zero_and_one_are_no_counts() -> None:
    rows = rows_of()
    rows[0]["score"] = 0.5
    summary = summary_of(rows)
    assert all(it.num_right is None for it in summary.tasks[0].variants)


def test_not_scored_is_neither_zero_nor_counted() -> None:
    rows = rows_of()
    for row in rows:
        row["score"] = None if row["item_id"] == "task/1" else row["score"]
    found = variant(summary_of(rows))
    assert found.score is not None and found.score.mean == 0.5 and found.score.num_items == 2


@pytest.mark.parametrize("column", ["query_mode", "model", "model_revision", "execution"])
def test_rows_that_cannot_be_compared_are_in_tables_of_their_own(column: str) -> None:
    first, second = rows_of(task="a"), rows_of(task="b")
    second = [row | {column: "other", "task": "a"} for row in second]
    summary = summary_of(first + second)
    assert [task.task for task in summary.tasks] == ["benchmark/a", "benchmark/a"]
    assert len(summary.settings()) == 2 and all(task.num_items == 3 for task in summary.tasks)


def test_every_planned_row_is_somewhere_in_the_sum() -> None:
    rows = rows_of()
    rows[0]["status"] = TRUNCATED
    rows[1] |= {"status": FAILED, "failure_phase": "decode", "failure_type": "E", "failure_message": "why"}
    keys = [RowKey(row["identity"], row["item_id"], row["variant"]) for row in rows[:-2]]
    summary = summary_of(rows, [*keys, RowKey("not yet", "task/9", "full")])
    counts = (
        summary.num_ok,
        summary.num_truncated,
        summary.num_failed,
        summary.num_missing,
        summary.num_other,
    )
    assert counts == (len(rows) - 4, 1, 1, 1, 2)
    assert summary.num_planned == sum(counts[:4]) == len(keys) + 1
    assert [(it.label, it.phase, it.message) for it in summary.failures] == [("full", "decode", "why")]


def test_a_label_is_the_plans_and_not_the_rows() -> None:
    rows = rows_of()
    keys = [
        RowKey(row["identity"], row["item_id"], row["variant"].replace("knorm@0.5", "mine")) for row in rows
    ]
    assert variant(summary_of(rows, keys), "mine").num_rows == 3


def test_the_papers_row_is_named_by_what_it_kept() -> None:
    label = "kvmerger_paper[0.17+0.12]"
    rows = rows_of() + [
        row
        | {
            "variant": label,
            "policy": "kvmerger_paper",
            "kept_ratio": 0.613,
            "identity": row["identity"] + "p",
        }
        for row in rows_of(["knorm@0.5"])
    ]
    assert shown_label(variant(summary_of(rows), label)) == "kvmerger_paper (61.3% kept)"
    packed = [
        row | {"policy": "kvmerger_paper+int4", "variant": f"{label}+int4"}
        for row in rows
        if row["variant"] == label
    ]
    found = variant(summary_of(packed), f"{label}+int4")
    assert shown_label(found) == "kvmerger_paper+int4 (61.3% kept)"
    assert series_name(found) == "kvmerger_paper+int4"


def test_tasks_weigh_the_same_overall_and_a_missing_task_leaves_no_mean() -> None:
    small = rows_of(num_items=1, task="a")
    large = rows_of(["full", "no_context", "full_aa"], num_items=3, task="b")
    summary = summary_of(small + large)
    means = {it.label: it for it in summary.macro_means(summary.settings()[0])}
    assert means["full"].answer_nll == pytest.approx((0.5 + 1.5) / 2)
    assert means["knorm@0.5"].answer_nll is None


def test_degenerate_rows_are_counted_with_their_reason() -> None:
    rows = rows_of()
    rows[-1] |= {"is_degenerate": True, "degenerate_reason": "all fits"}
    found = variant(summary_of(rows))
    assert (found.num_degenerate, found.degenerate_reason) == (1, "all fits")


def test_nothing_at_all_is_an_empty_summary() -> None:
    summary = summary_of([])
    assert (summary.tasks, summary.num_planned) == ((), 0)


@pytest.mark.parametrize("has_plan", [True, False])
def test_the_planned_table_has_the_planned_rows_under_their_labels_and_every_column(has_plan: bool) -> None:
    table = pa.Table.from_pylist(rows_of(), schema=RESULT_SCHEMA)
    identities = table["identity"].to_pylist()
    wanted = [identities[4], "never run", identities[0]]
    plan = [RowKey(identity, "item", f"label {place}") for place, identity in enumerate(wanted)]
    found = planned_table(table, plan if has_plan else None)
    every_column = planned_rows(table, plan if has_plan else None, heavy=RESULT_SCHEMA.names)
    assert found.schema.equals(RESULT_SCHEMA) and found.to_pylist() == every_column
    assert found.num_rows == (2 if has_plan else len(identities))


def test_the_mean_is_that_of_the_tasks_means_and_lies_in_its_interval(seed: int) -> None:
    rng = random.Random(seed)
    rows = make_sweep_rows(rng, {"a@0.5": 0.5}, ["b/t"], 5) + make_sweep_rows(rng, {"a@0.5": 0.5}, ["b/u"], 9)
    found = macro_intervals(rows, "answer_nll")["a@0.5"]
    of_policy = [row for row in rows if row["variant"] == "a@0.5"]
    means = [statistics.fmean(r["answer_nll"] for r in of_policy if r["task"] == task) for task in ("t", "u")]
    assert found.mean == pytest.approx(statistics.fmean(means))
    assert found.low is not None and found.high is not None and found.low < found.mean < found.high


def test_a_variant_that_lacks_a_task_has_none(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5}, ["b/t", "b/u"], 3)
    rows = [
        row | {"score": None} if row["task"] == "u" and row["variant"] == "a@0.5" else row for row in rows
    ]
    assert "a@0.5" not in macro_intervals(rows, "score") and "full" in macro_intervals(rows, "score")


def test_parts_of_a_score_that_do_not_go_together_are_told_with_their_row() -> None:
    rows = rows_of(metric="rouge_geometric_mean", score_parts='{"rouge1": 1, "rouge2": 1}')
    assert variant(summary_of(rows)).corpus_score == 1
    wrong = rows[-1] | {"score_parts": '{"rouge1": 1}'}
    with pytest.raises(
        ResultError, match=r"rows/u1.parquet, row 'task//2/knorm@0.5'.*'score_parts'.*--rescore"
    ):
        summary_of([*rows[:-1], wrong])
