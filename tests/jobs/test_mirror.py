"""A results folder reaches MLflow without a model: what the report says, the files beside it, and twice is once."""

from __future__ import annotations

import csv
import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from jobs.analysis.folder.findings import Findings
from jobs.analysis.worst_items import worst_items
from jobs.mirror import main
from jobs.planning.work import RowKey
from jobs.report import main as report
from jobs.reporting.notation import shown_name
from jobs.results.grouping import grouped
from jobs.results.schema import RESULT_SCHEMA, Row
from jobs.results.store import ResultStore
from jobs.sweep import main as sweep
from jobs.tracking.content import sweep_of_folder, sweep_report
from tests.fakes.rows import INT4, make_sweep_rows, with_forms

TASKS = ("longbench/qasper", "rows/Büros + Rest @ 50 %")
POLICIES = {"snapkv+adakv@0.5": 0.5, "mine (ü) %": 0.25}
SETTINGS = {"name": "night", "tracking": {"enabled": True, "uri": None, "experiment": None}, "seed": 0}
META = {"sweep_id": "night-1", "git_commit": "abc", "versions": {"torch": "2"}, "started_at_s": 1.0}


@pytest.fixture(scope="module")
def rows(seed: int) -> list[Row]:
    asked = {"metric": "qa_f1", "budget_asked": '{"kept_ratio": 0.5}', "created_at_s": 5.0}
    made = make_sweep_rows(random.Random(seed), POLICIES, TASKS, 4, **asked)
    return with_forms(made, {"snapkv+adakv@0.5": INT4})


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)
    return path.read_bytes()


def filled(folder: Path, rows: list[Row], database: bytes) -> ResultStore:
    (folder / "mlflow.db").write_bytes(database)
    store = ResultStore(folder / "night")
    for number, of_unit in enumerate(grouped(rows, lambda row: row["unit_id"]).values()):
        store.write_unit(f"u{number}", [row | {"unit_id": f"u{number}"} for row in of_unit])
    store.write_plan(RowKey(row["identity"], row["item_id"], row["variant"]) for row in rows)
    store.write_settings(SETTINGS)
    store.write_run_meta(META)
    return store


@pytest.fixture
def store(tmp_path: Path, rows: list[Row], empty_database: bytes) -> ResultStore:
    """The results of a sweep that no server has heard of."""
    return filled(tmp_path, rows, empty_database)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory, rows: list[Row], empty_database: bytes) -> ResultStore:
    """The same, after it was mirrored; tests may only look, and mirror it again."""
    store = filled(tmp_path_factory.mktemp("mirrored"), rows, empty_database)
    assert main([str(store.root)]) == 0
    return store


def runs(store: ResultStore) -> dict[str, Any]:
    client = MlflowClient(tracking_uri=f"sqlite:///{store.root.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("night")
    found = client.search_runs([experiment.experiment_id])
    return {run.data.tags.get("kvmerger.variant", run.info.run_name): run for run in found}


def artifacts(store: ResultStore) -> dict[str, Path]:
    root = next((store.root.parent / "mlartifacts").glob("*/artifacts"))
    return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}


def predictions(store: ResultStore) -> list[dict[str, str]]:
    with artifacts(store)["predictions/longbench-qasper.csv"].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def num_points(store: ResultStore) -> int:
    with closing(sqlite3.connect(store.root.parent / "mlflow.db")) as connection:
        (number,) = connection.execute("select count(*) from metrics").fetchone()
    return int(number)


def test_runs_carry_the_reports_numbers_and_the_tags_to_find_them_by(mirrored: ResultStore) -> None:
    found = runs(mirrored)
    assert set(found) == {"night", "full", "full_aa", "no_context", *POLICIES}
    for run in found.values():
        wanted = {"policy", "budget", "mode", "execution", "model", "model_revision", "git_commit"}
        assert wanted <= run.data.tags.keys()
    child = found["snapkv+adakv@0.5"]
    assert (child.data.tags["budget"], child.data.tags["mode"]) == ("0.5", "query_agnostic")
    assert (child.data.tags["form"], found["full"].data.tags["form"]) == ("int4", "plain")
    assert child.data.metrics["bytes_share/mean"] == pytest.approx(INT4.bytes_ratio / 2, abs=1e-5)
    assert found["night"].data.tags["baseline"] == "false" and "baseline" not in child.data.tags
    assert {
        "score/longbench/qasper",
        "delta/longbench/qasper/low",
        "delta_nll/mean",
    } <= child.data.metrics.keys()
    assert found["night"].data.metrics["rows/ok"] == 2 * 4 * 5
    assert "best/score" in found["night"].data.metrics
    opening = found["night"].data.tags["mlflow.note.content"].split("\n\n")[:2]
    assert "#/experiments/" in opening[0] and opening[1].startswith("|variant")


def test_every_run_is_called_what_the_tables_call_it_and_names_its_datasets(mirrored: ResultStore) -> None:
    findings, found = Findings.read(mirrored), runs(mirrored)
    (setting,) = findings.summary.settings()
    names = {it.label: shown_name(it) for it in findings.summary.macro_means(setting)}
    assert {label: run.info.run_name for label, run in found.items() if label != "night"} == names
    assert found["night"].data.tags["best"] in names.values()
    for run in found.values():
        assert [it.dataset.name for it in run.inputs.dataset_inputs] == list(TASKS)
        assert all(json.loads(it.dataset.profile)["num_rows"] == 4 for it in run.inputs.dataset_inputs)
    assert {row["variant"] for row in predictions(mirrored)} == set(names.values())


def test_the_worst_items_are_a_table_for_mlflow(
    mirrored: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{mirrored.root.parent / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # the client looks for tables of its surroundings' server
    run = runs(mirrored)["night"]
    client = MlflowClient(tracking_uri=uri)
    table = client.load_table(run.info.experiment_id, "worst_items.json", [run.info.run_id])
    findings = Findings.read(mirrored)
    losses = worst_items(findings.rows_with("prediction", "answers", "prompt_tail"))
    expected = sorted(
        ((it.nll_loss or 0.0, it.item_id, it.policy.text) for policy in losses for it in policy.losses),
        reverse=True,
    )
    found = table[["nll_loss", "item_id", "answer"]].values.tolist()
    assert [(item, answer) for _, item, answer in found] == [(item, answer) for _, item, answer in expected]
    assert [loss for loss, *_ in found] == pytest.approx([loss for loss, *_ in expected], abs=1e-4)


def test_files_hold_every_row_the_traces_and_the_answers(mirrored: ResultStore, rows: list[Row]) -> None:
    files = artifacts(mirrored)
    assert {"report.html", "summary.md", "settings.yaml", "environment.json"} <= files.keys()
    table = pq.read_table(files["rows/rows.parquet"])
    assert table.schema.equals(RESULT_SCHEMA) and table.num_rows == len(rows)
    trace = pq.read_table(files["traces/longbench-qasper.parquet"]).to_pylist()
    of_task = [row for row in rows if row["task"] == "qasper"]
    assert [it["live_bytes"] for it in trace] == [it[2] for row in of_task for it in json.loads(row["trace"])]
    assert [it["prediction"] for it in predictions(mirrored)] == [row["prediction"] for row in of_task]
    assert len([name for name in files if name.startswith("predictions/")]) == len(TASKS)
    assert any(name.startswith("figures/") and name.endswith(".svg") for name in files)
    assert json.loads(files["environment.json"].read_text())["versions"] == {"torch": "2"}


def test_mirrored_twice_is_mirrored_once(mirrored: ResultStore) -> None:
    first = num_points(mirrored)
    assert main([str(mirrored.root)]) == 0
    assert num_points(mirrored) == first > 0 and len(runs(mirrored)) == 6
    assert {len(run.inputs.dataset_inputs) for run in runs(mirrored).values()} == {len(TASKS)}


def test_scores_made_anew_reach_the_runs(store: ResultStore, rows: list[Row]) -> None:
    """The stored scores were made up; the predictions match no answer, so all of them become 0."""
    assert main([str(store.root)]) == 0
    before = runs(store)["full"].data.metrics
    assert before["score/longbench/qasper"] > 0
    assert report([str(store.root), "--rescore"]) == 0
    assert main([str(store.root)]) == 0
    after = runs(store)["full"].data.metrics
    assert after["score/longbench/qasper"] == after["score/longbench/qasper/low"] == 0.0
    assert after["kl/longbench/qasper"] == before["kl/longbench/qasper"]
    assert pq.read_table(artifacts(store)["rows/rows.parquet"])["score"].to_pylist() == [0.0] * len(rows)


def test_passwords_do_not_leave_the_folder(store: ResultStore, tmp_path: Path) -> None:
    store.write_settings({**SETTINGS, "model": {"name": "https://me:secret@host/model"}})
    store.write_run_meta({**META, "args": ["--set", "tracking.uri=http://me:secret@host"]})
    findings = Findings.read(store)
    (tmp_path / "files").mkdir()
    report = sweep_report(findings, "FINISHED", None, tmp_path / "files")
    texts = [path.read_text() for path in (tmp_path / "files").iterdir()]
    assert len(texts) == 3
    assert "secret" not in f"{texts} {report.description} {sweep_of_folder(findings, store.root)}"


def test_a_folder_that_misses_rows_is_not_called_finished(store: ResultStore) -> None:
    next(iter(store.rows_folder.glob("*.parquet"))).unlink()
    assert main([str(store.root)]) == 0
    assert {run.info.status for run in runs(store).values()} == {"KILLED"}
    # A digest of the items that happen to be there would be of no dataset.
    assert not any(run.inputs.dataset_inputs for run in runs(store).values())


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda store: (store.root / "run_meta.json").unlink(), [], "output_dir"),
        (lambda store: store.write_settings({**SETTINGS, "tracking": {"enabled": False}}), [], "--uri"),
        (lambda store: None, ["--uri", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (lambda store: None, ["--uri", "./mlruns"], "is a folder"),
    ],
)
def test_what_cannot_be_mirrored_is_told_with_the_remedy(
    store: ResultStore,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[ResultStore], None],
    options: list[str],
    message: str,
) -> None:
    damage(store)
    assert sweep(["mirror", str(store.root), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_results_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert sweep(["mirror", str(tmp_path / "emty")]) == 2
    told = f"there is no results folder '{tmp_path}/emty'. In {tmp_path}: Did you mean 'empty'?"
    assert told in capsys.readouterr().err
    assert sweep(["mirror", str(tmp_path / "empty")]) == 2
    assert f"{tmp_path}/empty lacks the rows, " in capsys.readouterr().err
