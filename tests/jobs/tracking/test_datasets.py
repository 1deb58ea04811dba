"""A dataset is what was asked: the same for every model, policy and order, another where an item is another."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from jobs.results.schema import Row
from jobs.tracking.datasets import tracked_datasets
from tests.fakes.rows import make_sweep_rows

TASKS = ("longbench/qasper", "ruler/1024/vt")
SETTINGS: Mapping[str, Any] = {
    "tasks": [
        {"name": "longbench/qasper", "data": "/data/longbench", "limit": 5, "length": None},
        {"name": "ruler/vt", "data": None, "length": 1024},
        {"name": "ruler/vt", "data": None, "length": 4096},
    ]
}


@pytest.fixture
def rows(seed: int) -> list[Row]:
    made = make_sweep_rows(random.Random(seed), {"snapkv@0.5": 0.5}, TASKS, 5)
    # As RULER has them: the length in the task and, behind the task's name, in the item's id.
    for row in made:
        row["item_id"] = row["item_id"].replace("ruler/1024/vt", "ruler/vt/1024/seed42")
    return made


def digests(rows: list[Row]) -> dict[str, str]:
    return {it.name: it.digest for it in tracked_datasets(rows, SETTINGS)}


def test_models_policies_and_the_order_of_rows_change_no_digest(rows: list[Row], seed: int) -> None:
    others = [row | {"model": "another", "prediction": "x"} for row in rows if row["variant"] == "full"]
    random.Random(seed).shuffle(others)
    assert digests(others) == digests(rows) and set(digests(rows)) == set(TASKS)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row | {"answers": ["another"]},
        lambda row: row | {"cluster_id": "another"},
        lambda row: row | {"metric": "another"},
        lambda row: row | {"item_id": f"{row['item_id']}x"},
    ],
)
def test_another_item_is_another_dataset(rows: list[Row], change: Callable[[Row], Row], seed: int) -> None:
    of_task = [row["item_id"] for row in rows if row["task"] == "qasper"]
    changed_item = random.Random(seed).choice(of_task)
    changed = [change(row) if row["item_id"] == changed_item else row for row in rows]
    before, after = digests(rows), digests(changed)
    assert before[TASKS[0]] != after[TASKS[0]] and before[TASKS[1]] == after[TASKS[1]]
    fewer = [row for row in rows if row["item_id"] != changed_item]
    assert digests(fewer)[TASKS[0]] not in (before[TASKS[0]], after[TASKS[0]])


def test_source_is_the_settings_entry_of_the_task_and_counts_are_those_of_its_items(rows: list[Row]) -> None:
    rows[0]["cluster_id"] = "shared"
    own = [row for row in rows if row["task"] == "qasper"]
    for row in own[: len(own) // 5 * 2]:  # two of five items on one text
        row["cluster_id"] = "shared"
    qasper, ruler = tracked_datasets(rows, SETTINGS)
    assert (qasper.num_items, qasper.num_contexts, qasper.source_type) == (5, 4, "local")
    assert json.loads(qasper.source)["asked_for"] == [
        {"name": "longbench/qasper", "data": "/data/longbench", "limit": 5}
    ]
    assert json.loads(ruler.source)["asked_for"] == [{"name": "ruler/vt", "length": 1024}]
    assert "generated" in json.loads(ruler.source)["comes_from"][0] and ruler.source_type == "benchmark"


def test_what_the_items_were_read_from_is_told_with_each_task(rows: list[Row]) -> None:
    read = [
        {"task": "longbench/qasper", "place": "s3://me:secret@host/x", "sha256": "ab", "num_rows": 5},
        {"task": "longbench/hotpotqa", "place": "/data"},
    ]
    qasper, ruler = tracked_datasets(rows, SETTINGS, read)
    assert json.loads(qasper.source)["read"] == [read[0] | {"place": "s3://…@host/x"}]
    assert "read" not in json.loads(ruler.source) and digests(rows)[TASKS[0]] == qasper.digest


def test_settings_that_are_lost_and_benchmarks_that_are_not_registered_cost_the_source_alone(
    rows: list[Row],
) -> None:
    for lost in ({}, {"tasks": 5}, {"tasks": "x"}, {"tasks": [None]}, {"tasks": float("nan")}):
        assert digests(rows) == {it.name: it.digest for it in tracked_datasets(rows, lost)}
    (of_mine,) = tracked_datasets([rows[0] | {"item_id": "mine/t/0"}], {"tasks": [{"name": "mine/t"}]})
    assert json.loads(of_mine.source) == {"asked_for": [{"name": "mine/t"}], "comes_from": []}


def test_passwords_are_taken_out_of_the_source(rows: list[Row]) -> None:
    settings = {"tasks": [{"name": "longbench/qasper", "data": "s3://me:secret@host/x"}]}
    assert "secret" not in tracked_datasets(rows, settings)[0].source
