"""A folder is read once, and everything that is told of it is of the same rows."""

import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.analysis.differences import differences_to_full
from jobs.analysis.folder.findings import Findings
from jobs.analysis.summary import summarize
from jobs.planning.work import RowKey
from jobs.results.planned import planned_rows, planned_table
from jobs.results.schema import RESULT_SCHEMA, ResultError, Row
from jobs.results.store import ResultStore
from tests.fakes.rows import make_sweep_rows

HEAVY = ("trace", "prediction", "answers", "versions")


@pytest.fixture
def rows(seed: int) -> list[Row]:
    return make_sweep_rows(random.Random(seed), {"snapkv@0.5": 0.5}, ["b/t"], 5, unit_id="u")


def plan_of(rows: list[Row], seed: int) -> list[RowKey]:
    """Most rows in another order, one under another label, and one that has not run."""
    keys = [RowKey(row["identity"], row["item_id"], row["variant"]) for row in rows[2:]]
    random.Random(seed).shuffle(keys)
    keys[0] = replace(keys[0], label="mine")
    return [*keys, RowKey("not yet", "item", "full")]


@pytest.mark.parametrize("has_plan", [True, False])
def test_rows_are_the_planned_ones_in_the_plans_order(has_plan: bool, rows: list[Row], seed: int) -> None:
    table = pa.Table.from_pylist(rows, schema=RESULT_SCHEMA)
    plan = plan_of(rows, seed) if has_plan else None
    found = Findings.of(table, plan)
    assert list(found.rows) == planned_rows(table, plan)
    assert found.rows_with(*HEAVY) == planned_rows(table, plan, HEAVY)
    assert found.table.equals(planned_table(table, plan))
    assert (found.summary.num_planned, found.summary.num_missing, found.summary.num_other) == (
        (len(rows) - 1, 1, 2) if has_plan else (len(rows), 0, 0)
    )


def test_what_is_derived_is_computed_once(rows: list[Row]) -> None:
    found = Findings.of(pa.Table.from_pylist(rows, schema=RESULT_SCHEMA))
    assert found.summary == summarize(rows) and found.summary is found.summary
    assert found.differences == differences_to_full(rows) and found.differences is found.differences


def test_a_folder_is_read_with_what_lies_beside_its_rows(rows: list[Row], tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.write_unit("u", rows)
    store.write_settings({"name": "mine"})
    store.write_run_meta({"sweep_id": "s"})
    found = Findings.read(store)
    assert (found.name, found.meta, found.planned) == ("mine", {"sweep_id": "s"}, None)
    assert {row["identity"] for row in found.rows} == {row["identity"] for row in rows}
    (tmp_path / "run_meta.json").write_text("{")
    with pytest.raises(ResultError, match=r"run_meta\.json"):
        Findings.read(store)


@pytest.mark.parametrize("settings", ["", "a: [", "no mapping"])
def test_without_settings_that_can_be_read_the_rows_name_the_sweep(settings: str, rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows, schema=RESULT_SCHEMA)
    assert Findings.of(table, settings_yaml=settings).name == rows[0]["sweep"]
    assert Findings.of(table.slice(0, 0), settings_yaml=settings).name == "sweep"
