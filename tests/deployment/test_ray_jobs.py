"""On a token-protected cluster: submitted jobs and drivers that join; users' code comes along; a stop keeps rows."""

import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.results.store import ResultStore
from tests.fakes.sweeps import save_data, save_settings, save_tiny_model
from tests.servers.ray_head import CALL_TIMEOUT_S, RAY, RayHead, ray_head

pytestmark = pytest.mark.ray
NUM_ITEMS, NUM_MANY_ITEMS = 4, 200
NUM_REFERENCES = 3
# A tiny model gains nothing from more cores, and its threads wait for each other where the machine is busy.
ONE_ACTOR = "actors={count: 1, num_cpus: 1}"
POLICY = """
from dataclasses import dataclass

from kvmerger import KEY_NORMS, ScoringPolicy
import {helper}


@dataclass(frozen=True)
class Mine(ScoringPolicy):
    def scores(self, evidence):
        return -evidence.get(KEY_NORMS)

    def compress(self, layer, evidence, budget):
        return {helper}.keep(super().compress(layer, evidence, budget))
"""
HELPER = "def keep(cache):\n    return cache\n"


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    # A busy machine may need longer than Ray's 3 s between SIGTERM and SIGKILL.
    with ray_head(RAY_JOB_STOP_WAIT_TIME_S="60") as made:
        yield made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Path:
    (tmp_path / "settings").mkdir()
    return save_settings(tmp_path / "settings", model, save_data(tmp_path / "data", NUM_ITEMS))


@pytest.fixture
def working_dir(tmp_path: Path, repo_root: Path) -> Path:
    """What a user would submit: the three packages, and a policy with what it imports."""
    folder = tmp_path / "submitted"
    for package in ("kvmerger", "evaluators", "jobs"):
        shutil.copytree(repo_root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    write_policy(folder, "in_the_folder")
    return folder


def write_policy(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(POLICY.format(helper=f"{name}_helper"))
    (folder / f"{name}_helper.py").write_text(HELPER)


def sweep(config: Path, output_dir: str, *overrides: str) -> list[str]:
    sets = [part for override in overrides for part in ("--set", override)]
    return [
        sys.executable,
        "jobs/sweep.py",
        str(config),
        "--executor",
        "ray",
        "--output_dir",
        output_dir,
        *sets,
    ]


def policies(*modules: str) -> str:
    entries = [f"{{name: '{module}:Mine', budget: 0.5, label: {module}}}" for module in modules]
    return f"policies=[{', '.join(entries)}]"


def test_a_submitted_job_stores_all_rows_and_its_workers_have_the_users_policies(
    head: RayHead, config: Path, working_dir: Path, tmp_path: Path
) -> None:
    write_policy(config.parent, "beside_the_settings")
    wanted = policies("in_the_folder", "beside_the_settings")
    out = str(tmp_path / "results")
    command = sweep(config, out, wanted, ONE_ACTOR)
    done = head.call(*head.submit(working_dir, *command), PYTHONPATH="")
    assert done.returncode == 0 and "succeeded" in done.stdout, done.stdout
    store = ResultStore(out)
    store.check_integrity()
    table = store.read_table()
    assert set(table["status"].to_pylist()) == {"ok"}, set(table["failure_message"].to_pylist())
    assert table.num_rows == NUM_ITEMS * (NUM_REFERENCES + 2)
    assert {"in_the_folder", "beside_the_settings"} < set(table["variant"].to_pylist())
    assert "warning" not in done.stdout


def test_a_driver_that_joins_brings_its_code_along(
    head: RayHead, config: Path, working_dir: Path, tmp_path: Path
) -> None:
    """The cluster was started without a PYTHONPATH and elsewhere; git ignoring a file does not matter."""
    write_policy(tmp_path / "here", "ignored_by_git")
    (tmp_path / "here" / ".gitignore").write_text("*.py\n")
    command = sweep(config, str(tmp_path / "results"), policies("ignored_by_git"), ONE_ACTOR)
    command[1] = str(working_dir / "jobs" / "sweep.py")
    done = head.call(*command, cwd=tmp_path / "here", RAY_ADDRESS=head.gcs, PYTHONPATH=str(working_dir))
    assert done.returncode == 0, done.stdout
    table = ResultStore(tmp_path / "results").read_table()
    assert set(table["status"].to_pylist()) == {"ok"}, set(table["failure_message"].to_pylist())
    assert table.num_rows == NUM_ITEMS * (NUM_REFERENCES + 1)


def test_without_the_token_nothing_is_run(head: RayHead, working_dir: Path) -> None:
    command = head.submit(working_dir, "echo", "ran")
    refused = head.call(*command, RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0 and "succeeded" not in refused.stdout


def test_bad_input_fails_the_job_with_its_sentence(
    head: RayHead, config: Path, working_dir: Path, tmp_path: Path
) -> None:
    """Ray's own exit code is 1 whatever ours is; the status message names ours."""
    command = sweep(config, str(tmp_path / "results"), "actors.cpus=1")
    done = head.call(*head.submit(working_dir, *command), PYTHONPATH="")
    assert done.returncode == 1 and "exit code 2" in done.stdout
    assert (
        "unknown key 'actors.cpus' (did you mean 'num_cpus'?)" in done.stdout
        and "Traceback" not in done.stdout
    )


def test_job_stop_keeps_rows_and_prints_a_partial_table(
    head: RayHead, config: Path, working_dir: Path, tmp_path: Path
) -> None:
    save_data(tmp_path / "data", NUM_MANY_ITEMS)
    store = ResultStore(tmp_path / "results")
    command = sweep(config, str(store.root), "tasks.0.max_new_tokens=64", ONE_ACTOR)
    options = ("--no-wait", "--submission-id", "to-be-stopped")
    assert head.call(*head.submit(working_dir, *command, options=options), PYTHONPATH="").returncode == 0
    deadline_s = time.monotonic() + CALL_TIMEOUT_S
    while not list(store.rows_folder.glob("*.parquet")) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    job = ("--address", head.dashboard, "to-be-stopped")
    assert head.call(RAY, "job", "stop", *job).returncode == 0
    assert "was stopped" in head.call(RAY, "job", "status", *job).stdout
    store.check_integrity()
    num_rows, num_planned = store.read_table().num_rows, NUM_MANY_ITEMS * (NUM_REFERENCES + 1)
    log = head.call(RAY, "job", "logs", *job).stdout
    assert 0 < num_rows < num_planned
    assert re.search(rf"planned {num_planned} = {num_rows} ok .* missing", log), log[-3000:]
    assert "interrupted" in log
    told = store.read_run_meta()["ray"]
    assert (told["submission_id"], told["dashboard"]) == ("to-be-stopped", head.dashboard) and told["job_id"]
