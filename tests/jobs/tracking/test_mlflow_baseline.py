"""Exactly one run is the baseline, its rows come back as they were, and a server that is gone is one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from jobs.gate.baseline import BaselineError
from jobs.gate.judge import HEAVY_COLUMNS
from jobs.planning.work import RowKey
from jobs.results.planned import planned_rows, planned_table
from jobs.results.store import ResultStore
from jobs.tracking.files import ROWS
from jobs.tracking.mlflow_baseline import MlflowBaseline
from jobs.tracking.tracker import TrackingError
from tests.fakes.rows import make_row

EXPERIMENT = "nightly"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of its own; making one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    MlflowClient(tracking_uri=uri).create_experiment(
        EXPERIMENT, artifact_location=(folder / "artifacts").as_uri()
    )
    return uri


@pytest.fixture
def client(uri: str) -> MlflowClient:
    client = MlflowClient(tracking_uri=uri)
    for run in client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id]):
        client.delete_run(run.info.run_id)
    return client


@pytest.fixture
def baselines(uri: str, client: MlflowClient, tmp_path: Path) -> MlflowBaseline:
    return MlflowBaseline(uri, EXPERIMENT, tmp_path)


def tracked_night(client: MlflowClient, root: Path, name: str) -> tuple[ResultStore, str]:
    """A night's folder and its run, as a sweep leaves them."""
    store = ResultStore(root / name)
    rows = [make_row(f"{name}-{index}", item_id=f"i{index}", variant="old label") for index in range(2)]
    store.write_unit("u1", rows)
    store.write_plan([RowKey(f"{name}-{index}", f"i{index}", "knorm@0.5") for index in (1, 0)])
    store.write_settings({"name": name})
    store.write_run_meta({"sweep_id": f"sweep-{name}"})
    experiment_id = client.get_experiment_by_name(EXPERIMENT).experiment_id
    tags = {"kvmerger.sweep_id": f"sweep-{name}", "kvmerger.role": "sweep"}
    run_id: str = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    file = root / f"{name}.mirrored" / Path(ROWS).name
    file.parent.mkdir()
    pq.write_table(planned_table(store.read_table(), store.read_plan()), file)
    client.log_artifact(run_id, str(file), Path(ROWS).parent.name)
    child = {**tags, "kvmerger.role": "variant"}
    client.create_run(experiment_id, tags=child, run_name="knorm@0.5")
    return store, run_id


def tags_of(client: MlflowClient, run_id: str) -> dict[str, Any]:
    return dict(client.get_run(run_id).data.tags)


def test_nothing_is_the_baseline_before_a_promotion(client: MlflowClient, baselines: MlflowBaseline) -> None:
    tracked_night(client, baselines.root, "first")
    assert baselines.find() is None and baselines.cached() is None
    assert MlflowBaseline(baselines.uri, "no such experiment", baselines.root).find() is None


def test_asking_for_a_baseline_makes_no_database(tmp_path: Path) -> None:
    folder = tmp_path / "not yet"
    assert MlflowBaseline(f"sqlite:///{folder / 'mlflow.db'}", EXPERIMENT, tmp_path).find() is None
    assert not folder.exists()


def test_the_promoted_nights_rows_come_back_under_the_plans_labels(
    client: MlflowClient, baselines: MlflowBaseline, tmp_path: Path
) -> None:
    store, run_id = tracked_night(client, tmp_path, "first")
    assert "first" in baselines.promote(store)
    found = MlflowBaseline(baselines.uri, EXPERIMENT, tmp_path / "elsewhere").find()
    its_id = client.get_experiment_by_name(EXPERIMENT).experiment_id
    assert MlflowBaseline(baselines.uri, "whatever", tmp_path / "by id", its_id).find() == found
    assert found is not None and (found.name, found.origin) == ("first", f"MLflow run {run_id}")
    expected = planned_rows(store.read_table(), store.read_plan(), HEAVY_COLUMNS)
    assert sorted(found.rows, key=lambda row: row["item_id"]) == sorted(
        expected, key=lambda row: row["item_id"]
    )
    assert {row["variant"] for row in found.rows} == {"knorm@0.5"}


def test_exactly_one_run_is_the_baseline_after_each_promotion(
    client: MlflowClient, baselines: MlflowBaseline, tmp_path: Path
) -> None:
    nights = [tracked_night(client, tmp_path, name) for name in ("a", "b", "c")]
    for store, promoted_id in (nights[0], nights[1], nights[2], nights[0]):
        baselines.promote(store)
        tagged = [run_id for _, run_id in nights if tags_of(client, run_id).get("baseline") == "true"]
        assert tagged == [promoted_id]
        found = baselines.find()
        assert found is not None and found.name == store.root.name
    assert tags_of(client, nights[1][1])["baseline"] == "false"


def test_a_promotion_cut_short_leaves_two_of_which_the_later_counts(
    client: MlflowClient, baselines: MlflowBaseline, tmp_path: Path
) -> None:
    (old, old_id), (new, _) = (tracked_night(client, tmp_path, name) for name in ("old", "new"))
    baselines.promote(old)
    baselines.promote(new)
    client.set_tag(old_id, "baseline", "true")  # as if the server had died before the old tag went
    found = baselines.find()
    assert found is not None and found.name == "new"
    baselines.promote(new)
    assert tags_of(client, old_id)["baseline"] == "false"


def test_the_last_baseline_serves_while_the_server_is_down(
    client: MlflowClient, baselines: MlflowBaseline, tmp_path: Path
) -> None:
    store, _ = tracked_night(client, tmp_path, "first")
    baselines.promote(store)
    found = baselines.find()
    down = MlflowBaseline("http://127.0.0.1:9", EXPERIMENT, tmp_path)
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9"):
        down.find()
    cached = down.cached()
    assert found is not None and cached is not None
    assert cached.rows == found.rows and "as last seen" in cached.origin


def test_a_tagged_run_without_rows_is_named(client: MlflowClient, baselines: MlflowBaseline) -> None:
    experiment_id = client.get_experiment_by_name(EXPERIMENT).experiment_id
    tags = {"kvmerger.role": "sweep", "baseline": "true"}
    run_id = client.create_run(experiment_id, tags=tags).info.run_id
    with pytest.raises(BaselineError, match=rf"run {run_id} .* has no artifact rows/rows\.parquet"):
        baselines.find()


def test_the_verdict_is_a_tag_and_two_files(
    client: MlflowClient, baselines: MlflowBaseline, tmp_path: Path
) -> None:
    store, run_id = tracked_night(client, tmp_path, "first")
    store.write_text("gate.json", json.dumps({"verdict": "fail"}))
    store.write_text("gate.md", "worse")
    baselines.publish(store, "fail")
    assert tags_of(client, run_id)["gate"] == "fail"
    assert {"gate.json", "gate.md"} <= {it.path for it in client.list_artifacts(run_id)}


def test_a_night_the_server_does_not_know_is_told(baselines: MlflowBaseline, tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "unknown")
    store.write_run_meta({"sweep_id": "never-sent"})
    with pytest.raises(BaselineError, match="unknown is not in the experiment"):
        baselines.promote(store)
