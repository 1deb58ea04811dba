"""Scoring again needs stored text alone, adds newer rows, keeps the earlier ones and tells every change."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.results.rescore import change_lines, rescore, rescore_results
from jobs.results.schema import FAILED, Row
from jobs.results.store import ResultStore
from tests.fakes.rows import make_row

NOW_S = 100.0


def scored_row(identity: str, **values: Any) -> Row:
    columns = {
        "prediction": "the owner",
        "answers": ["owner"],
        "all_classes": [],
        "metric": "qa_f1",
        "scorer": "qa_f1",
        "score": 1.0,
        "score_reason": None,
    }
    return make_row(identity, **(columns | values))


def found(store: ResultStore) -> dict[str, Row]:
    return {row["identity"]: row for row in store.read_table().to_pylist()}


def test_only_rows_that_differ_are_written_and_the_earlier_ones_stay(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    path = store.write_unit("u1", [scored_row("wrong", score=0.25), scored_row("right")])
    before = path.read_bytes()
    (change,) = rescore_results(store, NOW_S)
    assert (change.num_scored, change.num_changed, change.largest_change) == (2, 1, 0.75)
    assert (change.mean_before, change.mean_after) == (0.625, 1.0)
    rows = found(store)
    assert (rows["wrong"]["score"], rows["wrong"]["unit_id"]) == (1.0, "u1-rescored")
    assert (rows["wrong"]["created_at_s"], rows["right"]["unit_id"]) == (NOW_S, "u1")
    assert path.read_bytes() == before
    store.check_integrity()


def test_scoring_a_third_time_loses_no_row_of_the_second(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.write_unit("u1", [scored_row("a", score=0.25), scored_row("b", score=0.5)])
    rescore_results(store, NOW_S)
    again = found(store)["a"] | {"score": 0.0}
    store.write_unit("u1-rescored", [again, found(store)["b"]])
    rescore_results(store, NOW_S + 1)
    assert [row["score"] for row in found(store).values()] == [1.0, 1.0]
    assert rescore_results(store, NOW_S + 2)[0].num_changed == 0
    assert {row["created_at_s"] for row in found(store).values()} == {NOW_S, NOW_S + 1}


def test_a_clock_that_is_behind_does_not_make_the_new_score_old() -> None:
    (row,) = rescore([scored_row("a", score=0.0, created_at_s=NOW_S + 50)], NOW_S).rows
    assert row["created_at_s"] > NOW_S + 50


def test_all_but_the_score_is_as_it_was() -> None:
    old = scored_row("a", score=0.0, kl_mean=0.5, slots=[[1]], answer_nll=2.0)
    (new,) = rescore([old], NOW_S).rows
    assert {name for name in old if old[name] != new[name]} == {"score", "unit_id", "created_at_s"}


def test_parts_and_scorer_are_filled_in_where_old_rows_have_none() -> None:
    old = scored_row("a", metric="rouge_geometric_mean", scorer=None, answers=["the owner"])
    (new,) = rescore([old], NOW_S).rows
    assert json.loads(new["score_parts"]) == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert new["scorer"].startswith("rouge_geometric_mean (rouge_score")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"answers": [], "score": None, "score_reason": "the answers are hidden"}, "the answers are hidden"),
        ({"prediction": None}, "no prediction"),
        ({"metric": "rogue"}, "UnknownNameError"),
        ({"metric": "classification", "all_classes": None}, "needs class names"),
    ],
)
def test_a_row_that_cannot_be_scored_keeps_what_it_has_and_says_why(
    values: dict[str, Any], reason: str
) -> None:
    rescored = rescore([scored_row("a", **values)], NOW_S)
    assert rescored.rows == () and rescored.tasks[0].num_kept == 1
    assert reason in "\n".join(change_lines(rescored.tasks))


def test_class_names_in_the_row_are_enough_for_classification() -> None:
    row = scored_row("a", metric="classification", all_classes=["owner", "baker"], score=0.0)
    assert rescore([row], NOW_S).rows[0]["score"] == 1.0


def test_failed_rows_are_left_alone() -> None:
    failed = scored_row("a", status=FAILED, failure_phase="engine", failure_type="MyError", score=None)
    assert rescore([failed], NOW_S).tasks == ()


def test_the_command_loads_nothing_heavy_and_tells_what_changed(tmp_path: Path, repo_root: Path) -> None:
    ResultStore(tmp_path).write_unit("u1", [scored_row("a", score=0.25)])
    check = (
        "import runpy, sys; sys.argv = ['report.py', sys.argv[1], '--rescore']\n"
        "try: runpy.run_path('jobs/report.py', run_name='__main__')\n"
        "finally: assert not {'torch', 'ray', 'mlflow', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", check, str(tmp_path)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 rows scored again, 1 changed; mean 25.00 before, 100.00 now" in done.stderr
    assert "planned 1 = 1 ok" in done.stdout
