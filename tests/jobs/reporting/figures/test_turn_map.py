"""A cell is the mean over exactly the items of its turn; one turn is no map, and strange metadata none."""

from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np
import pytest

from jobs.reporting.figures.turn_map import turn_maps
from jobs.results.schema import FAILED, Row
from tests.fakes.rows import make_row


def row_at(index: int, turn: Any, **values: Any) -> Row:
    base: dict[str, Any] = {"variant": "a", "benchmark": "scbench", "task": "kv", "answer_nll": 1.0}
    return make_row(str(index), **(base | {"item_metadata": json.dumps({"turn": turn})} | values))


def test_cells_hold_the_items_of_their_turn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        row_at(
            index,
            int(rng.integers(1, 6)),
            variant=str(rng.choice(["a", "b"])),
            answer_nll=float(rng.random()),
        )
        for index in range(120)
    ]
    (found,) = turn_maps(rows, {})
    assert (found.task, found.turns) == ("scbench/kv", (1, 2, 3, 4, 5))
    for label, cells in found.lines:
        for turn, cell in zip(found.turns, cells, strict=True):
            inside = [
                row["answer_nll"]
                for row in rows
                if row["variant"] == label and json.loads(row["item_metadata"])["turn"] == turn
            ]
            assert cell is None if not inside else cell.mean == pytest.approx(statistics.fmean(inside))


def test_the_worst_has_the_deepest_tint_whichever_way_the_measure_runs() -> None:
    by_nll = turn_maps([row_at(0, 1, answer_nll=3.0), row_at(1, 2)], {})
    by_score = turn_maps(
        [row_at(0, 1, answer_nll=None, score=0.1), row_at(1, 2, answer_nll=None, score=0.9)], {}
    )
    for (found,) in (by_nll, by_score):
        ((_, (first, second)),) = found.lines
        assert first and second and (first.tint, second.tint) == (1, 0)


@pytest.mark.parametrize("turn", ["2", 0, True, 10**9, None, 1.5])
def test_what_is_no_turn_is_on_no_map(turn: Any) -> None:
    assert turn_maps([row_at(0, turn), row_at(1, 1)], {}) == []
    assert turn_maps([row_at(0, 2, status=FAILED), row_at(1, 1)], {}) == []
