"""What a driver finds out before any work: here, which device it plans for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.execution.on_ray import cluster as connected
from jobs.execution.on_ray.cluster import Cluster
from jobs.execution.on_ray.resources import device_of_the_actors
from jobs.planning.preparation import prepare
from jobs.settings.schema import load_settings
from tests.fakes.sweeps import save_data, save_settings, save_tiny_model

CPUS, GPUS = ({"Alive": True, "Resources": {"CPU": 8.0, **more}} for more in ({}, {"GPU": 4.0}))
GONE = GPUS | {"Alive": False}


@pytest.mark.parametrize(
    ("overrides", "nodes", "device", "dtype"),
    [
        # The actors have a GPU, or none, whatever this machine has.
        (["actors.num_gpus=0.5"], None, "cuda", "bfloat16"),
        (["actors.num_gpus=0"], None, "cpu", "float32"),
        (["model.device=cpu"], None, "cpu", "float32"),
        ([], [CPUS, GPUS], "cuda", "bfloat16"),  # as where the head of a cluster has no GPU
        ([], [CPUS, GONE], "cpu", "float32"),
        (["actors.num_gpus=0"], [CPUS, GPUS], "cpu", "float32"),
        (["model.device=cpu"], [CPUS, GPUS], "cpu", "float32"),
        (["model.dtype=float16"], [CPUS, GPUS], "cuda", "float16"),
    ],
)
def test_what_auto_means_is_decided_where_the_actors_are_and_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    nodes: Sequence[dict[str, Any]] | None,
    device: str,
    dtype: str,
) -> None:
    @contextmanager
    def cluster(_: object) -> Iterator[Cluster]:
        assert nodes is not None, "there is none to join"
        yield Cluster(nodes, can_grow=True)

    monkeypatch.setattr(connected, "connected", cluster)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if nodes is not None:
        monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    model = save_tiny_model(tmp_path / "model")
    config = save_settings(tmp_path, model, save_data(tmp_path / "data", 2))
    settings = load_settings(config, ["executor=ray", *overrides])
    prepared = prepare(settings, done=(), find_device=lambda: device_of_the_actors(settings))
    assert (prepared.model.device, prepared.model.dtype) == (device, dtype)
    settled = prepared.settled(settings)
    assert (settled.model.device, settled.model.dtype) == (device, dtype)
    assert settled.model_copy(update={"model": settings.model}) == settings


def test_actors_load_the_commit_that_was_planned(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    settings = load_settings(save_settings(tmp_path, model, save_data(tmp_path / "data", 1)))
    prepared = prepare(settings, done=(), find_device=lambda: "cpu")
    assert prepared.settled(settings).model.revision is None, "a folder has no commit"
    (read,) = prepared.read
    file = Path(str(read["place"]))
    assert file.parent == tmp_path / "data" and read["num_rows"] == 1
    assert read["task"] == settings.tasks[0].name and len(str(read["sha256"])) == 64
    commit = "0123456789" * 4
    from_hub = replace(prepared, model=replace(prepared.model, revision=commit))
    assert from_hub.settled(settings).model.revision == commit


def test_a_budget_at_which_every_head_streams_is_told(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    config = save_settings(tmp_path, model, save_data(tmp_path / "data", 3))
    small = "{name: duo_attention, budget: 0.5, sink_size: 4, recent_size: 8, label: fits}"
    settings = load_settings(config, [f"policies=[full, duo_attention@0.5, knorm@0.5, {small}]"])
    prepared = prepare(settings, done=(), find_device=lambda: "cpu")
    (told,) = (it for it in prepared.warnings if "streams" in it)
    num_slots = prepared.plan.typical_tokens // 2
    assert told.startswith(
        f"duo_attention@0.5: {num_slots} slots per head are no more than what a streaming head holds, 384"
    )
