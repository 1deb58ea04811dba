"""The map shows the differences as they were judged, and a reason that holds for all only once."""

import random
import re

from jobs.analysis.differences import Difference, differences_to_full
from jobs.reporting.figures.difference_map import MACRO, difference_maps
from jobs.reporting.notation import NO_SPREAD, shown_difference
from kvmerger.variants import FULL_AA
from tests.fakes.pairs import paired_rows
from tests.fakes.rows import make_sweep_rows


def differences(seed: int, num_items: int, num_tasks: int = 2) -> tuple[Difference, ...]:
    tasks = [f"b/t{index}" for index in range(num_tasks)]
    return differences_to_full(
        make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.1": 0.1}, tasks, num_items)
    )


def test_cells_hold_the_judged_means_and_verdicts(seed: int) -> None:
    judged = differences(seed, 60)
    nll, score = difference_maps(judged, {})
    assert (nll.metric, score.metric, nll.tasks) == ("answer NLL", "score", (MACRO, "b/t0", "b/t1"))
    for it in judged:
        found = nll if it.metric.column == "answer_nll" else score
        cell = dict(found.rows)[it.label][found.tasks.index(it.task or MACRO)]
        assert cell is not None and it.paired is not None
        assert cell.interval == it.paired.interval
        assert cell.verdict == it.verdict


def test_the_noise_floor_has_a_row_of_its_own(seed: int) -> None:
    for found in difference_maps(differences(seed, 10), {}):
        label, cells = found.rows[-1]
        assert label == FULL_AA and any(cell is not None and cell.verdict == "noise" for cell in cells)


def test_a_reason_all_variants_share_stands_once(seed: int) -> None:
    nll, _ = difference_maps(differences(seed, 10), {})
    assert "too few" in nll.no_verdict["b/t0"]
    assert all(not cell.note for _, cells in nll.rows for cell in cells if cell is not None)


def test_no_difference_of_scores_is_shown_beyond_what_scores_allow(seed: int) -> None:
    _, score = difference_maps(differences(seed, 3), {})
    shown = [
        number
        for _, cells in score.rows
        for cell in cells
        if cell
        for number in re.findall(r"[\d.]+", shown_difference(cell.metric, cell.interval).ends)
    ]
    assert shown and max(map(float, shown)) <= 100


def test_one_task_has_no_mean_column(seed: int) -> None:
    assert all(found.tasks == ("b/t0",) for found in difference_maps(differences(seed, 5, num_tasks=1), {}))


def test_differences_that_are_all_equal_have_no_interval(seed: int) -> None:
    rows = [row | {"score": float("@" not in row["variant"])} for row in paired_rows(seed, 4)]
    _, score = difference_maps(differences_to_full(rows), {})
    for label, mean in (("snapkv@0.5", "-100.0"), (FULL_AA, "0.0")):
        (cell,) = dict(score.rows)[label]
        assert cell is not None and shown_difference(cell.metric, cell.interval) == (mean, NO_SPREAD)
        assert cell.drawing.count("<path") == 1


def test_a_loss_beyond_no_context_is_an_arrow_and_presses_nobody_onto_0(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.1": 0.1}, ["b/t"], 10)
    far = [row | {"answer_nll": row["answer_nll"] + 40 * (row["variant"] == "b@0.1")} for row in rows]
    nll, _ = difference_maps(differences_to_full(far), {}, 2.0)
    drawings = {label: cells[0].drawing for label, cells in nll.rows if cells[0]}
    assert 'class="beyond"' in drawings["b@0.1"] and "circle" not in drawings["b@0.1"]
    near = re.search(r'<circle cx="([\d.]+)"', drawings["a@0.5"])
    assert near and float(near[1]) > 65  # of 120, 60 being 0
