"""The traces shown are those of the median item, as they stand in the rows."""

import json
import random

import pytest

from jobs.analysis.summary import summarize
from jobs.reporting.figures.memory_trace import draw, trace_panel
from jobs.reporting.figures.style import series_styles
from jobs.reporting.notation import shown_name
from jobs.results.schema import Row
from tests.fakes.rows import FULL_BYTES, make_sweep_rows


@pytest.fixture
def rows(seed: int) -> list[Row]:
    return make_sweep_rows(random.Random(seed), {"a@0.5": 0.5}, ["b/t"], 5)


def test_the_item_of_median_length_is_shown_with_its_bytes_and_the_full_cache_once(rows: list[Row]) -> None:
    task = summarize(rows).tasks[0]
    panel = trace_panel(task, rows, shown_name)
    assert panel is not None and (panel.item_id, panel.context_tokens) == ("b/t/2", 4002)
    assert [line.label for line in panel.lines] == ["full cache", "no context (tail alone)", "a@0.5"]
    policy = panel.lines[-1]
    points = json.loads(next(r["trace"] for r in rows if r["item_id"] == "b/t/2" and r["variant"] == "a@0.5"))
    assert list(policy.live_bytes) == [point[2] for point in points]
    assert list(policy.reserved_bytes) == [point[3] for point in points]
    assert policy.first_decode_bytes < FULL_BYTES == policy.live_bytes[0]
    assert "MiB at prefill" in draw(panel, series_styles(["a"]), "x")


def test_an_item_that_more_variants_finished_is_preferred(rows: list[Row]) -> None:
    kept = [r for r in rows if r["variant"] != "a@0.5" or r["item_id"] == "b/t/4"]
    task = summarize(kept).tasks[0]
    panel = trace_panel(task, kept, shown_name)
    assert panel is not None and panel.item_id == "b/t/4"


def test_rows_without_a_trace_have_no_panel(rows: list[Row]) -> None:
    task = summarize(rows).tasks[0]
    assert trace_panel(task, [row | {"trace": None} for row in rows], shown_name) is None
    assert trace_panel(task, [row | {"trace": "[]"} for row in rows], shown_name) is None
