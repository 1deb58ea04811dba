"""A unit always comes back as one row for every one it owes, whatever happens inside."""

from __future__ import annotations

import dataclasses
import pickle
import socket
from pathlib import Path

import pytest

from jobs.execution.unit_runner import LoadedEngine, OtherModelError, UnitRunner, variant_builder
from jobs.results.schema import check_rows
from jobs.settings.schema import ModelSettings
from kvmerger.variants import parse_policy_entry
from tests.fakes.engine import (
    KNORM,
    RAISE_ID,
    SKIP_ID,
    UNBUILDABLE,
    FakeEngine,
    FakeLoad,
    make_context,
    make_planned,
    make_settings,
    make_unit,
)


def make_runner(load: FakeLoad | None = None) -> UnitRunner:
    runner = UnitRunner(make_settings().model, make_context(), load or FakeLoad())
    runner.load()
    return runner


def test_unit_gives_one_row_per_key_in_order() -> None:
    unit = make_unit("u", make_planned("a"), make_planned("b"))
    rows = make_runner().run(unit)
    check_rows("u", rows)
    assert [row["identity"] for row in rows] == [key.identity for key in unit.row_keys]
    assert {row["status"] for row in rows} == {"ok"}


def test_exception_in_the_engine_becomes_failed_rows_and_the_next_unit_runs() -> None:
    runner = make_runner()
    rows = runner.run(make_unit("bad", make_planned("a", RAISE_ID)))
    check_rows("bad", rows)
    assert {(row["status"], row["failure_phase"], row["failure_type"]) for row in rows} == {
        ("failed", "engine", "RuntimeError")
    }
    assert all("_misbehave" in row["failure_traceback"] for row in rows)
    assert {row["status"] for row in runner.run(make_unit("good"))} == {"ok"}


def test_policy_that_cannot_be_made_costs_its_own_rows_only() -> None:
    rows = make_runner().run(make_unit("u", variants=(UNBUILDABLE, KNORM)))
    found = {row["variant"]: (row["status"], row["failure_phase"]) for row in rows}
    assert found == {
        "full": ("ok", None),
        UNBUILDABLE.label: ("failed", "variant"),
        KNORM.label: ("ok", None),
    }


def test_row_the_engine_forgot_is_still_owed() -> None:
    rows = make_runner().run(make_unit("u", make_planned("a", SKIP_ID)))
    assert {row["variant"]: row["status"] for row in rows} == {"full": "ok", KNORM.label: "failed"}


def test_a_policy_that_exits_costs_rows_and_neither_the_sweep_nor_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leave(*_: object, **options: object) -> None:
        raise SystemExit(0)

    runner = make_runner()
    with monkeypatch.context() as patched:
        patched.setattr(FakeEngine, "run", leave)
        rows = runner.run(make_unit("u", make_planned("a")))
    check_rows("u", rows)
    assert {(row["status"], row["failure_type"]) for row in rows} == {("failed", "SystemExit")}
    assert {row["status"] for row in runner.run(make_unit("v", make_planned("a")))} == {"ok"}


@pytest.mark.parametrize("counts", [False, True])
def test_variants_count_massive_tokens_where_the_settings_say_so(counts: bool) -> None:
    variant = variant_builder(ModelSettings(count_massive=counts))(parse_policy_entry("snapkv@0.5")[0])
    assert variant.counts_massive is counts and variant.label == "snapkv@0.5"


def test_model_is_loaded_once(tmp_path: Path) -> None:
    runner = make_runner(FakeLoad(tmp_path))
    (loaded,) = tmp_path.iterdir()
    loaded.unlink()
    runner.load()
    assert list(tmp_path.iterdir()) == []


PLANNED, OTHER = "files-0123456789ab", "files-ba9876543210"


def test_another_model_than_was_planned_runs_nothing(tmp_path: Path) -> None:
    context = make_context(model_revision=PLANNED)
    runner = UnitRunner(make_settings(model={"name": str(tmp_path)}).model, context, FakeLoad(revision=OTHER))
    for _ in range(2):
        with pytest.raises(OtherModelError) as raised:
            runner.load()
    assert str(raised.value) == (
        f"model {str(tmp_path)!r} is {OTHER} on {socket.gethostname()}, and {PLANNED} was planned: its files there "
        f"(weights, or any *.json) are others than the plan was made with. Give every machine the same files at that path, "
        f"leave them alone while a sweep runs, and run the same command again"
    )
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    with pytest.raises(AssertionError):
        runner.run(make_unit("u"))


@pytest.mark.parametrize("planned", [PLANNED, "main", "unknown", None])
def test_the_model_that_was_planned_is_run_and_so_is_what_a_branch_leads_to(planned: str | None) -> None:
    runner = UnitRunner(
        make_settings().model, make_context(model_revision=planned), FakeLoad(revision=PLANNED)
    )
    runner.load()
    rows = runner.run(make_unit("u"))
    assert {(row["status"], row["model_revision"]) for row in rows} == {("ok", PLANNED)}


def test_items_on_several_contexts_come_back_as_their_own_rows() -> None:
    planned = [
        make_planned("a", 21),
        make_planned("b", 22),
        make_planned("c", 21, gold_ids=(6, 7)),  # a second question on the first one's context
        make_planned("d", SKIP_ID),
    ]
    unit = make_unit("u", *planned)
    assert unit.contexts == ((0, 2), (1,), (3,))
    rows = make_runner().run(unit)
    check_rows("u", rows)
    assert [row["identity"] for row in rows] == [key.identity for key in unit.row_keys]
    said = {row["item_id"]: row["prediction"] for row in rows if row["variant"] == "full"}
    assert said == {"a": "w8 w9", "b": "w8 w9", "c": "w6 w7", "d": "w8 w9"}
    assert [row["item_id"] for row in rows if row["status"] == "failed"] == ["d"]


@pytest.mark.parametrize(("found", "status"), [("3", "ok"), ("4", "failed")])
def test_code_of_another_version_than_was_planned_runs_nothing_under_that_ones_name(
    found: str, status: str
) -> None:
    def load(settings: ModelSettings) -> LoadedEngine:
        return dataclasses.replace(FakeLoad()(settings), version_of=lambda _: found)

    runner = UnitRunner(make_settings().model, make_context(), load)
    runner.load()
    rows = runner.run(make_unit("u", variants=(KNORM,)))
    check_rows("u", rows)
    assert {row["variant"]: row["status"] for row in rows} == {"full": "ok", KNORM.label: status}
    if status == "failed":
        (row,) = (row for row in rows if row["variant"] == KNORM.label)
        assert (row["failure_phase"], row["failure_type"]) == ("variant", "OtherPolicyError")
        assert f"version 4 on {socket.gethostname()}, and 3 was planned" in row["failure_message"]
