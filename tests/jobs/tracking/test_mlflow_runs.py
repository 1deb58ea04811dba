"""A sweep's runs are found again, named as tables name them, and open on the answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from jobs.tracking.metrics import Ranking, Readings
from jobs.tracking.mlflow_runs import ROLE_TAG
from jobs.tracking.tracker import (
    EXPERIMENT_ID,
    RUN_ID,
    VIEW,
    TrackedDataset,
    TrackingError,
    VariantReport,
)
from tests.servers.tracked_sweeps import (
    LABELS,
    SCORE,
    make_report,
    make_row,
    make_sweep,
    run_once,
    runs_of,
    sqlite_tracker,
)


def test_parent_opens_with_the_answer_and_holds_the_files(folder: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    (files / "figures").mkdir(parents=True)
    (files / "figures" / "a.svg").write_text("<svg/>")
    (files / "summary.md").write_text("all tables")
    report = make_report({}, folder=files, tables=["summary.md"], description=f"{RUN_ID} in {EXPERIMENT_ID}")
    tracker = run_once(folder, [], report)
    parent = runs_of(tracker.uri)["sweep"]
    experiment = MlflowClient(tracking_uri=tracker.uri).get_experiment(parent.info.experiment_id)
    answer = f"{parent.info.run_id} in {experiment.experiment_id}"
    assert parent.data.tags["mlflow.note.content"] == answer
    shown = json.loads(parent.data.tags["mlflow.loggedArtifacts"])
    assert shown == [{"path": "summary.md", "type": "table"}]
    assert runs_of(tracker.uri)["knorm@0.5"].data.tags["mlflow.note.content"] == "child **note**"
    stored = {path.name: path.read_text() for path in (folder / "new" / "artifacts").rglob("*.*")}
    assert stored == {"a.svg": "<svg/>", "summary.md": "all tables"}


def test_the_link_of_each_sweep_opens_its_variants_alone_flat_and_the_best_first(folder: Path) -> None:
    """Found as MLflow's page finds them: by the view's filter, in its order."""
    for sweep_id in ("demo-1", "demo-2"):
        report = make_report({SCORE: 0.5}, columns=[SCORE], ranking=Ranking(SCORE, False), description=VIEW)
        full = VariantReport(Readings({SCORE: 1.0}, 2, 5))
        report = replace(report, variants={"full": full, **report.variants})
        tracker = run_once(folder, [], report, sweep_id=sweep_id)
    client = MlflowClient(tracking_uri=tracker.uri)
    experiment = client.get_experiment_by_name("kv")
    views = {key: it for key, it in experiment.tags.items() if key.startswith("mlflow.sharedViewState.")}
    runs = client.search_runs([experiment.experiment_id], f"tags.`{ROLE_TAG}` = 'sweep'")
    assert len(runs) == len(views) == 2
    for run in runs:
        view = json.loads(views[f"mlflow.sharedViewState.{run.data.tags['mlflow.note.content']}"])
        assert f"metrics.`{SCORE}`" == view["orderByKey"] and view["orderByKey"] in view["selectedColumns"]
        order = f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"
        found = client.search_runs([experiment.experiment_id], view["searchFilter"], order_by=[order])
        assert [it.info.run_name for it in found] == ["full", "knorm@0.5"]
        assert {it.data.tags["mlflow.parentRunId"] for it in found} == {run.info.run_id}


def datasets_of(run: Any) -> list[tuple[str, str, str]]:
    inputs = [it.dataset for it in run.inputs.dataset_inputs]
    return sorted((it.name, it.digest, it.profile) for it in inputs)


def test_every_run_names_its_datasets_once_however_often_it_is_told(folder: Path) -> None:
    of_task = TrackedDataset("longbench/qasper", "d1", "local", "{}", 5, 4)
    for _ in range(3):
        tracker = run_once(folder, [], make_report({}, datasets=[of_task]))
    profile = '{"num_rows": 5, "num_contexts": 4}'
    for label in ("sweep", "knorm@0.5"):
        assert datasets_of(runs_of(tracker.uri)[label]) == [("longbench/qasper", "d1", profile)]
    # A sweep that goes on with more items has read another dataset too.
    run_once(folder, [], make_report({}, datasets=[replace(of_task, digest="d2")]))
    assert [it[1] for it in datasets_of(runs_of(tracker.uri)["sweep"])] == ["d1", "d2"]


def test_a_variant_is_called_at_its_end_what_tables_call_it_and_is_found_again(folder: Path) -> None:
    for name in ("knorm (51.5% kept)", "", "knorm (52.0% kept)"):
        report = make_report({SCORE: 0.5})
        variants = {label: replace(it, name=name) for label, it in report.variants.items()}
        tracker = run_once(folder, [], replace(report, variants=variants))
    runs = runs_of(tracker.uri)
    assert set(runs) == {"sweep", *LABELS}
    assert runs["knorm@0.5"].info.run_name == "knorm (52.0% kept)"


def test_a_promoted_baseline_stays_one_when_its_sweep_goes_on(folder: Path) -> None:
    tracker = run_once(folder, [], make_report({}))
    client, parent = MlflowClient(tracking_uri=tracker.uri), runs_of(tracker.uri)["sweep"]
    assert parent.data.tags["baseline"] == "false"
    client.set_tag(parent.info.run_id, "baseline", "true")
    run_once(folder, [], make_report({}), tags={"mode": "query_aware", "baseline": "false", "policy": "new"})
    tags = runs_of(tracker.uri)["sweep"].data.tags
    assert (tags["baseline"], tags["policy"]) == ("true", "new")


def test_what_only_finished_rows_tell_is_a_tag_of_every_run(folder: Path) -> None:
    tracker = run_once(folder, [], make_report({}, tags={"device_name": "NVIDIA H200"}))
    runs = runs_of(tracker.uri)
    assert {runs[name].data.tags["device_name"] for name in ("sweep", "knorm@0.5")} == {"NVIDIA H200"}


def test_of_two_runs_for_one_variant_the_empty_one_goes(folder: Path) -> None:
    """The answer to a creation got lost, and the client asked again."""
    tracker = run_once(folder, [make_row()], make_report({SCORE: 1.0}))
    client, child = MlflowClient(tracking_uri=tracker.uri), runs_of(tracker.uri)["knorm@0.5"]
    client.create_run(child.info.experiment_id, tags=child.data.tags)
    run_once(folder, [make_row()], make_report({SCORE: 1.0}))
    assert runs_of(tracker.uri)["knorm@0.5"].info.run_id == child.info.run_id


def test_deleted_experiment_is_refused_with_the_way_to_restore_it(folder: Path) -> None:
    tracker = run_once(folder, [], make_report({}))
    client = MlflowClient(tracking_uri=tracker.uri)
    client.delete_experiment(client.get_experiment_by_name("kv").experiment_id)
    with pytest.raises(TrackingError, match="experiments restore"):
        sqlite_tracker(folder).start(make_sweep())


def test_runs_go_to_the_experiment_of_the_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(tracking_uri=sqlite_tracker(folder).uri)
    there = client.create_experiment("theirs", artifact_location=(folder / "new" / "artifacts").as_uri())
    run_once(folder, [], make_report({}), experiment_id=there)
    assert len(client.search_runs([there])) == 1 + len(LABELS)
    assert client.get_experiment_by_name("kv") is None
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    for wrong, said in (
        ("77", r"no experiment with the id '77' \(of MLFLOW_EXPERIMENT_ID\)"),
        ("x", "id 'x' at"),
    ):
        with pytest.raises(TrackingError, match=said):
            sqlite_tracker(folder).start(make_sweep(experiment_id=wrong))
