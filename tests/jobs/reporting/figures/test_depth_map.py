"""A cell is the mean over exactly the items of its depth and length."""

import json
import statistics
from typing import Any

import numpy as np
import pytest

from jobs.reporting.figures.depth_map import depth_maps
from jobs.results.schema import FAILED, Row
from tests.fakes.rows import make_row


def row_at(index: int, depth: float, length: int, **values: Any) -> Row:
    metadata = json.dumps({"depth_percent": depth, "length_tokens": length})
    base: dict[str, Any] = {
        "variant": "a",
        "item_metadata": metadata,
        "benchmark": "ruler",
        "task": f"{length}/niah",
    }
    return make_row(str(index), **(base | {"answer_nll": 1.0} | values))


def test_cells_hold_the_items_of_their_depth_and_length(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        row_at(index, float(rng.integers(101)), int(rng.choice([512, 1024])), answer_nll=float(rng.random()))
        for index in range(200)
    ]
    (found,) = depth_maps(rows, {})
    assert (found.task, found.lengths) == ("ruler/niah", ("512", "1,024"))
    for band in range(5):
        for column, length in enumerate((512, 1024)):
            inside = [
                row["answer_nll"]
                for row in rows
                if (place := json.loads(row["item_metadata"]))["length_tokens"] == length
                and 20 * band <= place["depth_percent"] < 20 * band + (21 if band == 4 else 20)
            ]
            cell = found.panels[0].cells[band][column]
            if cell is None:
                assert inside == []
            else:
                assert (cell.num_items, cell.mean) == (len(inside), pytest.approx(statistics.fmean(inside)))


def test_the_worst_cell_has_the_deepest_tint_whichever_way_the_measure_runs() -> None:
    by_nll = depth_maps([row_at(0, 10, 512, answer_nll=3.0), row_at(1, 90, 512, answer_nll=1.0)], {})
    no_nll = {"answer_nll": None}
    by_score = depth_maps(
        [row_at(0, 10, 512, score=0.0, **no_nll), row_at(1, 90, 512, score=1.0, **no_nll)], {}
    )
    for (found,) in (by_nll, by_score):
        first, last = found.panels[0].cells[0][0], found.panels[0].cells[4][0]
        assert first is not None and last is not None and (first.tint, last.tint) == (1.0, 0.0)


def test_a_variant_worse_than_no_context_bleaches_nobody() -> None:
    rows = [
        row_at(index, 10, 512, variant=label, answer_nll=nll)
        for index, (label, nll) in enumerate({"full": 1.0, "no_context": 3.0, "a": 2.0, "b": 41.0}.items())
    ]
    (found,) = depth_maps(rows, {})
    tints = {it.label: cell.tint for it in found.panels if (cell := it.cells[0][0])}
    assert tints == {"full": 0.0, "no_context": 1.0, "a": 0.5, "b": 1.0}


def test_failed_rows_and_items_without_a_depth_are_left_out() -> None:
    assert depth_maps([row_at(0, 10, 512, status=FAILED), row_at(1, 10, 512, item_metadata=None)], {}) == []
    assert depth_maps([row_at(0, 10, 512, item_metadata='{"length_tokens": 3}')], {}) == []


@pytest.mark.parametrize("length", [float("nan"), float("inf"), -1, 10**400, "512", None])
def test_a_length_that_is_none_is_any_length(length: Any) -> None:
    (found,) = depth_maps([row_at(0, 10, length), row_at(1, 90, length, variant="knorm")], {})
    assert found.lengths == ("any length",)
