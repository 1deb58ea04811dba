"""The one table: in the order of its measure, with the numbers of all other outputs, and marks that the rows bear out."""

import random

from jobs.analysis.differences import differences_to_full
from jobs.analysis.summary import macro_intervals, summarize
from jobs.reporting.cells import mean_cells, task_cells
from jobs.reporting.page.ranked import BEST, CLOSE, RankedTable, ranked_table
from jobs.results.schema import Row
from tests.fakes.rows import make_sweep_rows

POLICIES = {f"{name}@{kept}": kept for name in ("a", "b", "c") for kept in (0.75, 0.25)}


def sweep(seed: int, tasks: int, items: int) -> list[Row]:
    names = [f"bench/t{index}" for index in range(tasks)]
    return make_sweep_rows(random.Random(seed), POLICIES, names, items)


def table_of(rows: list[Row]) -> RankedTable | None:
    summary = summarize(rows)
    means = summary.macro_means(summary.settings()[0]) if rows else ()
    intervals = {column: macro_intervals(rows, column) for column in ("answer_nll", "score")}
    return ranked_table(
        summary.tasks, means, rows, differences_to_full(rows), intervals, frozenset({"a@0.25"})
    )


def test_the_mean_over_tasks_is_ranked_by_answer_nll(seed: int) -> None:
    rows = sweep(seed, 3, 6)
    table, summary = table_of(rows), summarize(rows)
    assert table is not None and table.ranked_by == "answer NLL" and "3 tasks" in table.where
    means = {it.label: it for it in summary.macro_means(summary.settings()[0])}
    nll = [means[line.label].answer_nll for line in table.policies]
    assert nll == sorted(nll, key=lambda it: it or 0.0) and len(nll) == len(POLICIES)
    assert [line.label for line in table.references] == ["full", "full_aa", "no_context"]
    for line in (*table.references, *table.policies):
        cells = mean_cells(means[line.label])
        shown = [cell.shown.mean for cell in line.cells]
        assert shown == [
            it.mean
            for it in (cells.held, cells.answer_nll, cells.recovered, cells.score, cells.kl, cells.top1)
        ]
        assert line.cells[1].shown.ends  # the mean over tasks has its interval
    assert [line.label for line in table.policies if line.is_on_front] == ["a@0.25"]


def test_one_task_shows_its_own_numbers(seed: int) -> None:
    rows = sweep(seed, 1, 6)
    table = table_of(rows)
    assert table is not None and table.where == "bench/t0, 6 items on 6 contexts"
    for variant in summarize(rows).tasks[0].variants:
        line = next(it for it in (*table.references, *table.policies) if it.label == variant.label)
        assert line.cells[1].shown == task_cells(variant).answer_nll
        assert line.cells[3].shown == task_cells(variant).score


def test_each_column_has_one_best_and_too_few_contexts_no_other_mark(seed: int) -> None:
    table = table_of(sweep(seed, 1, 6))
    assert table is not None and not table.has_close and any("6 contexts of 50" in it for it in table.notes)
    for place, (column, _, is_less_better) in enumerate(table.heads):
        marks = [line.cells[place].mark for line in table.policies]
        if column in ("bytes", "recovered"):
            assert set(marks) == {""}  # of bytes the best is no news, and what is recovered has no test
            continue
        best = next(line for line in table.policies if line.cells[place].mark == BEST)
        values = [line.cells[place].value or 0.0 for line in table.policies]
        assert marks.count(BEST) == 1
        assert best.cells[place].value == (min(values) if is_less_better else max(values))
    assert not any(cell.mark or cell.verdict for line in table.references for cell in line.cells)


def test_with_enough_contexts_equal_policies_are_close_and_others_worse(seed: int) -> None:
    table = table_of(sweep(seed, 2, 60))
    assert table is not None and table.notes == ()
    marks = {line.label: line.cells[1].mark for line in table.policies}
    # Policies of one budget differ by noise alone, those of the other budget by a whole nat.
    assert set(marks.values()) <= {BEST, CLOSE, ""}
    assert all(not mark for label, mark in marks.items() if label.endswith("0.25"))
    assert all(line.cells[1].verdict == "worse" and line.cells[1].sign == "▼" for line in table.policies)


def test_without_nll_the_score_ranks_and_silent_columns_go(seed: int) -> None:
    table = table_of([row | {"answer_nll": None} for row in sweep(seed, 2, 6)])
    assert table is not None and table.ranked_by == "score"
    assert [column for column, _, _ in table.heads] == ["bytes", "score", "kl", "top1"]
    scores = [line.cells[1].value or 0.0 for line in table.policies]
    assert scores == sorted(scores, reverse=True)


def test_what_is_not_known_stands_last(seed: int) -> None:
    rows = [row | ({"answer_nll": None} if row["variant"] == "a@0.75" else {}) for row in sweep(seed, 1, 6)]
    table = table_of(rows)
    assert table is not None and table.policies[-1].label == "a@0.75"
    assert table.told["a@0.75"].startswith("a@0.75: bytes 75.0%") and table.told["a@0.75"].endswith("n = 6")


def test_references_alone_make_no_table(seed: int) -> None:
    rows = [row for row in sweep(seed, 1, 3) if row["variant"] in ("full", "no_context")]
    assert table_of(rows) is None and table_of([]) is None
