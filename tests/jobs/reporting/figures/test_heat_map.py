"""Cells are the tables' numbers, marks are verdicts and nothing else is."""

import random

from jobs.analysis.differences import differences_to_full
from jobs.analysis.summary import summarize
from jobs.reporting.figures.heat_map import MARKS, HeatMap, heat_maps
from jobs.reporting.notation import plain
from jobs.results.schema import Row
from tests.fakes.rows import make_sweep_rows

NAMES = {"a@0.5": "a by name", "b@0.1": "b by name"}


def maps_of(rows: list[Row]) -> list[HeatMap]:
    return heat_maps(summarize(rows).tasks, differences_to_full(rows), NAMES)


def sweep(seed: int, tasks: int = 2, items: int = 52) -> list[Row]:
    names = [f"b/t{index}" for index in range(tasks)]
    return make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.1": 0.1}, names, items)


def test_cells_are_what_is_recovered_and_points_beside_the_full_cache(seed: int) -> None:
    rows = sweep(seed)
    recovered, score = maps_of(rows)
    by_task = {task.task: {it.label: it for it in task.variants} for task in summarize(rows).tasks}
    for map in (recovered, score):
        assert [(label, name) for label, name, _ in map.rows] == list(NAMES.items())
    for label, _, cells in recovered.rows:
        for task, cell in zip(recovered.tasks, cells, strict=True):
            assert cell is not None
            value = by_task[task][label].nll_recovered
            assert cell.text == plain(value) and value is not None
            assert cell.tint == min(max(1 - value, 0.0), 1.0)
    for label, _, cells in score.rows:
        for task, cell in zip(score.tasks, cells, strict=True):
            one, full = by_task[task][label].score, by_task[task]["full"].score
            assert cell is not None and one is not None and full is not None
            assert abs(float(cell.text) - 100 * (one.mean - full.mean)) < 0.051


def test_a_mark_is_a_verdict(seed: int) -> None:
    rows = sweep(seed)
    verdicts = {(it.label, it.task, it.metric.column): it.verdict for it in differences_to_full(rows)}
    for map, column in zip(maps_of(rows), ("answer_nll", "score"), strict=True):
        for label, _, cells in map.rows:
            for task, cell in zip(map.tasks, cells, strict=True):
                assert cell is not None and cell.mark == MARKS[verdicts[label, task, column]]
    assert any(cell and cell.mark for map in maps_of(rows) for _, _, cells in map.rows for cell in cells)
    assert not any(
        cell and cell.mark
        for map in maps_of(sweep(seed, items=5))
        for _, _, cells in map.rows
        for cell in cells
    )


def test_one_task_needs_no_map_and_a_task_without_a_number_has_a_gap(seed: int) -> None:
    assert maps_of(sweep(seed, tasks=1)) == []
    rows = [row | ({"score": None} if row["task"] == "t0" else {}) for row in sweep(seed, items=5)]
    _, score = maps_of(rows)
    assert all(cells[0] is None and cells[1] is not None for _, _, cells in score.rows)
    assert len(maps_of([row | {"score": None} for row in rows])) == 1
