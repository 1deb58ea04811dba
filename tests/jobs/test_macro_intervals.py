"""A mean over tasks has its interval only where every task has the number."""

import random
import statistics

import pytest

from jobs.analysis.summary import macro_intervals
from tests.jobs.row_fakes import make_sweep_rows


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
