"""Whatever a task is called, its key is one MLflow takes, and no other task's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Metric
from mlflow.utils.validation import _validate_batch_log_data

from jobs.tracking.metrics import HIGH, LOW, file_name, metric_key

ODD = [
    "longbench/my task",
    "rows/Fragen über Büros @ 50 % + Rest",
    "rows/質問",
    "rows/a:b",
    "rows/a;b",
    "a//b",
    "./b",
    "../b",
    "a/..",
    "a/",
    "",
    " ",
    "tab\tnewline\n",
    "tab\tnewline",
    "\ud800",
    "x" * 400,
    "x" * 401,
    "x/" * 200,
]


def is_taken_by_mlflow(key: str) -> bool:
    metrics, _, _ = _validate_batch_log_data([Metric(key, 1.0, 0, 0)], [], [])
    return [metric.key for metric in metrics] == [key]


@pytest.mark.parametrize(
    "name", ["longbench/qasper", "longbench-e/2wikimqa/0-4k", "ruler/4096/niah_single_2"]
)
def test_a_plain_name_stays_as_it_is(name: str) -> None:
    assert metric_key("score", name) == f"score/{name}"


@pytest.mark.parametrize("name", ODD)
def test_odd_names_and_their_ends_are_legal(name: str) -> None:
    for key in (metric_key("score", name), f"{metric_key('score', name)}/{HIGH}"):
        assert is_taken_by_mlflow(key)


@given(st.text(max_size=300) | st.text(alphabet="/. _-:@%+x", max_size=300))
def test_any_name_is_legal(name: str) -> None:
    assert is_taken_by_mlflow(f"{metric_key('delta', name)}/{LOW}")
    file = f"{file_name(name)}.parquet"
    assert "/" not in file and len(file.encode()) <= 255


def test_different_names_have_different_keys_and_files() -> None:
    assert len({metric_key("score", name) for name in ODD}) == len(ODD)
    plain = ["a/b", "a-b", "a b", "a+b", "a@b", "a_b", "a-b/c", "a/b-c"]
    assert len({file_name(name) for name in [*plain, *ODD]}) == len(plain) + len(ODD)
    assert file_name("longbench/qasper") == "longbench-qasper"
