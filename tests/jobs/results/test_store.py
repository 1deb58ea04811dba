"""The store: files are whole or absent, the newest row of an identity is read, and damage is named."""

import math
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from jobs.planning.work import RowKey
from jobs.results.schema import FAILED, RESULT_SCHEMA, TRUNCATED, ResultError, Row
from jobs.results.store import ResultStore
from tests.fakes.rows import make_row


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def test_what_is_written_is_read(store: ResultStore) -> None:
    row = make_row("a", slots=[[3, 4], [5, 6]], answers=["x", "y"], score=0.5, kv_bytes=2**40)
    store.write_unit("u1", [row])
    assert store.read_table().to_pylist() == [row]
    assert store.read_table().schema == RESULT_SCHEMA
    store.check_integrity()


def test_an_empty_store_has_an_empty_table(store: ResultStore) -> None:
    assert store.read_table().num_rows == 0
    assert store.identities() == frozenset()
    assert store.read_plan() is None


def test_only_finished_rows_count_as_done(store: ResultStore) -> None:
    failed = make_row("c", status=FAILED, failure_phase="decode", failure_type="ValueError")
    store.write_unit("u1", [make_row("a"), make_row("b", status=TRUNCATED), failed])
    assert store.identities() == {"a", "b"}


@pytest.mark.parametrize("names", [("u1", "u2"), ("u2", "u1")])
def test_the_newer_row_of_an_identity_wins_whatever_its_file_is_called(
    store: ResultStore, names: tuple[str, str]
) -> None:
    old, new = names
    failure = {"status": FAILED, "failure_phase": "load", "failure_type": "OSError"}
    store.write_unit(old, [make_row("a", old, created_at_s=1.0, **failure), make_row("b", old)])
    store.write_unit(new, [make_row("a", new, created_at_s=2.0)])
    assert sorted((row["identity"], row["unit_id"]) for row in store.read_table().to_pylist()) == [
        ("a", new),
        ("b", old),
    ]
    assert store.identities() == {"a", "b"}


def test_a_failed_row_hides_no_result_even_when_its_clock_is_ahead(store: ResultStore) -> None:
    failure = {"status": FAILED, "failure_phase": "load", "failure_type": "OSError"}
    store.write_unit("u1", [make_row("a", "u1", created_at_s=1.0)])
    store.write_unit("u2", [make_row("a", "u2", created_at_s=2.0, **failure)])
    assert [row["unit_id"] for row in store.read_table().to_pylist()] == ["u1"]
    assert store.identities() == {"a"}


def test_writing_a_unit_again_replaces_its_file(store: ResultStore) -> None:
    store.write_unit("u1", [make_row("a", score=0.0)])
    store.write_unit("u1", [make_row("a", score=1.0)])
    assert [row["score"] for row in store.read_table().to_pylist()] == [1.0]
    assert [path.name for path in store.rows_folder.iterdir()] == ["u1.parquet"]


def broken_rows() -> Iterator[tuple[str, list[Row]]]:
    whole = make_row("a")
    yield "no rows", []
    yield "an identity twice", [whole, make_row("a")]
    yield "a column missing", [{key: value for key, value in whole.items() if key != "seed"}]
    yield "a column too many", [whole | {"scores": 1}]
    yield "another unit's row", [whole | {"unit_id": "u2"}]
    yield "no model", [whole | {"model": None}]
    yield "an unknown status", [whole | {"status": "done"}]
    yield "a failure without its type", [whole | {"status": FAILED, "failure_phase": "decode"}]
    yield "a null without a reason", [whole | {"score_reason": None}]
    yield "a number that is none", [whole | {"score": math.nan}]
    yield "a text for a number", [whole | {"score": "1"}]
    yield "a number too large", [whole | {"slots": [[2**40]]}]


@pytest.mark.parametrize(("_case", "rows"), list(broken_rows()), ids=lambda value: str(value)[:30])
def test_a_row_that_breaks_the_schema_is_refused_and_nothing_is_written(
    store: ResultStore, _case: str, rows: list[Row]
) -> None:
    with pytest.raises(ResultError):
        store.write_unit("u1", rows)
    assert list(store.root.rglob("*.parquet")) == []


def test_a_damaged_file_is_named_with_what_to_do(store: ResultStore) -> None:
    path = store.write_unit("u1", [make_row("a")])
    path.write_bytes(path.read_bytes()[:-20])
    for read in (store.read_table, store.identities, store.check_integrity):
        with pytest.raises(ResultError, match=r"u1\.parquet.*delete it"):
            read()


def test_a_file_with_other_columns_is_named(store: ResultStore) -> None:
    path = store.write_unit("u1", [make_row("a")])
    pq.write_table(store.read_table().drop_columns(["task"]), path)
    with pytest.raises(ResultError, match=r"u1\.parquet.*task"):
        store.read_table()


def test_a_file_from_before_a_nullable_column_is_read_with_nulls(store: ResultStore) -> None:
    old = store.write_unit("u1", [make_row("a", prompt_tail="who?", item_metadata="{}", seed=3)])
    store.write_unit("u2", [make_row("b", "u2", prompt_tail="why?", item_metadata="{}")])
    pq.write_table(pq.read_table(old, partitioning=None).drop_columns(["prompt_tail", "item_metadata"]), old)
    found = {row["identity"]: row for row in store.read_table().to_pylist()}
    assert (found["a"]["prompt_tail"], found["a"]["item_metadata"], found["a"]["seed"]) == (None, None, 3)
    assert found["b"]["prompt_tail"] == "why?"
    store.check_integrity()


def test_a_file_with_a_column_too_many_is_named(store: ResultStore) -> None:
    path = store.write_unit("u1", [make_row("a")])
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.append_column("scores", table["score"]), path)
    with pytest.raises(ResultError, match=r"u1\.parquet.*scores"):
        store.read_table()


def test_integrity_sees_rows_in_the_wrong_file(store: ResultStore) -> None:
    path = store.write_unit("u1", [make_row("a")])
    path.rename(path.with_name("u2.parquet"))
    with pytest.raises(ResultError, match=r"u2\.parquet"):
        store.check_integrity()


def test_an_unfinished_write_is_not_read(store: ResultStore) -> None:
    store.write_unit("u1", [make_row("a")])
    (store.rows_folder / ".u2.parquet.17.tmp").write_bytes(b"PAR1")
    assert store.identities() == {"a"}


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="output_dir"):
        ResultStore(tmp_path / "file" / "results").write_unit("u1", [make_row("a")])


@pytest.mark.parametrize(
    "read", ["read_table", "read_plan", "read_run_meta", "read_settings_text", "identities"]
)
@pytest.mark.parametrize("below", ["", "results"])
def test_a_file_in_the_folders_place_is_named_and_is_no_empty_store(
    tmp_path: Path, read: str, below: str
) -> None:
    (tmp_path / "afile").touch()
    with pytest.raises(ResultError, match=r"afile is a file, not a folder; choose another output_dir$"):
        getattr(ResultStore(tmp_path / "afile" / below), read)()


@pytest.mark.parametrize("name", ["plan.json", "run_meta.json", "settings.yaml"])
def test_what_cannot_be_read_is_named(store: ResultStore, name: str) -> None:
    (store.root / name).mkdir(parents=True)
    readers = {"plan": store.read_plan, "run_meta": store.read_run_meta, "settings": store.read_settings_text}
    with pytest.raises(ResultError, match=rf"{name} cannot be read \(Is a directory\); delete it"):
        readers[name.partition(".")[0]]()


def test_plan_and_settings_come_back(store: ResultStore) -> None:
    keys = (RowKey("b", "item/1", "full"), RowKey("a", "item/1", "knorm@0.5"))
    store.write_plan(keys)
    store.write_settings({"name": "demo", "tasks": [{"name": "a/b"}]})
    assert store.read_plan() == keys
    assert yaml.safe_load((store.root / "settings.yaml").read_text())["tasks"] == [{"name": "a/b"}]


@pytest.mark.parametrize("name", ["settings.yaml", "run_meta.json", "plan.json", "rows/u1.parquet"])
def test_a_link_in_the_folder_is_replaced_and_never_written_through(store: ResultStore, name: str) -> None:
    theirs = store.root.parent / "theirs"
    theirs.write_text("mine")
    place = store.root / name
    place.parent.mkdir(parents=True)
    place.symlink_to(theirs)
    store.write_unit("u1", [make_row("a")])
    store.write_settings({"name": "s"})
    store.write_run_meta({})
    store.write_plan([])
    assert theirs.read_text() == "mine"
    assert not place.is_symlink()
    assert store.identities() == {"a"}


def test_a_folder_of_rows_that_is_a_link_is_not_written_to(store: ResultStore) -> None:
    theirs = store.root.parent / "theirs"
    theirs.mkdir()
    store.root.mkdir()
    store.rows_folder.symlink_to(theirs)
    with pytest.raises(ResultError, match="rows is a link"):
        store.write_unit("u1", [make_row("a")])
    assert list(theirs.iterdir()) == []


@pytest.mark.parametrize(
    ("column", "values"), [("score", ["high"]), ("identity", [None]), ("slots", [3])], ids=lambda it: str(it)
)
def test_a_file_of_another_kind_is_told_with_its_remedy(
    store: ResultStore, column: str, values: list[object]
) -> None:
    path = store.write_unit("u1", [make_row("a")])
    table = store.read_table()
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, [values]), path)
    with pytest.raises(ResultError, match=r"u1\.parquet.*delete it"):
        store.read_table()


@pytest.mark.parametrize("text", ["[" * 200_000, "3", "null", '{"cells": 5}', '{"cells": [[1]]}', "", "{"])
def test_a_plan_that_is_none_is_told_with_its_remedy(store: ResultStore, text: str) -> None:
    store.root.mkdir()
    (store.root / "plan.json").write_text(text)
    with pytest.raises(ResultError, match=r"plan\.json.*delete it"):
        store.read_plan()


@pytest.mark.parametrize("wrong", [5, "x", [1], {"a": [1]}, None, True])
def test_metadata_of_another_kind_is_not_known(tmp_path: Path, wrong: object) -> None:
    store = ResultStore(tmp_path)
    sound = {"sweep_id": "a", "sweep_ids": {}, "versions": {}, "args": [], "ray": {}, "mine": 3}
    store.write_run_meta(sound)
    assert store.read_run_meta() == sound
    store.write_run_meta({**dict.fromkeys(sound, wrong), "mine": 3})
    read = store.read_run_meta()
    assert read["mine"] == 3
    assert all(type(read[key]) is type(sound[key]) for key in read)
