"""The command line, end to end on a tiny real model: exit codes, resume, interrupts, and what a user can get wrong."""

import importlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from jobs.console.interrupts import STOPPING
from jobs.results.store import ResultStore
from jobs.sweep import main
from tests.fakes.own_policy import OWN_POLICY
from tests.fakes.sweeps import hear_interrupts, save_data, save_settings, save_tiny_model

NUM_ITEMS = 3
NUM_REFERENCES = 3
NUM_MANY_ITEMS = 150
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Path:
    return save_settings(tmp_path, model, save_data(tmp_path / "data", NUM_ITEMS))


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def files_of(store: ResultStore) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in store.rows_folder.glob("*")}


def test_a_sweep_ends_with_all_rows_and_a_table(
    config: Path, store: ResultStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(config)]) == 0
    store.check_integrity()
    table = store.read_table()
    assert table.num_rows == NUM_ITEMS * (NUM_REFERENCES + 1)
    assert set(table["status"].to_pylist()) == {"ok"}
    out = capsys.readouterr().out
    assert "planned 12 = 12 ok + 0 truncated + 0 failed" in out and "knorm@0.5" in out
    assert str(store.root) in out.replace("\n", "")


def test_the_same_command_again_computes_nothing(config: Path, store: ResultStore) -> None:
    assert main([str(config)]) == 0
    before = files_of(store)
    assert main([str(config), "--set", "name=renamed"]) == 0
    assert files_of(store) == before


def test_an_added_variant_is_all_that_is_computed(config: Path, store: ResultStore) -> None:
    assert main([str(config)]) == 0
    before = store.read_table()
    assert main([str(config), "--set", "policies=[{name: knorm, budget: [0.5, 0.25]}]"]) == 0
    after = store.read_table()
    assert after.slice(0, before.num_rows) == before
    assert after.slice(before.num_rows)["variant"].to_pylist() == ["knorm@0.25"] * NUM_ITEMS


def test_lost_rows_are_computed_again_and_are_the_same(config: Path, store: ResultStore) -> None:
    assert main([str(config)]) == 0
    before = {row["identity"]: row for row in store.read_table().to_pylist()}
    next(iter(store.rows_folder.glob("*.parquet"))).unlink()
    assert main([str(config)]) == 0
    after = {row["identity"]: row for row in store.read_table().to_pylist()}
    measured = ("prediction", "answer_nll", "kl_mean", "slots", "kv_bytes", "score")
    assert before.keys() == after.keys()
    assert all(before[key][name] == after[key][name] for key in before for name in measured)


def test_a_row_that_cannot_run_is_a_failed_one_and_shows_in_the_exit_code(
    config: Path, store: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapkv = "policies=[{name: snapkv, budget: 0.9, window_size: %d}]"
    assert main([str(config), "--set", "policies=[full]", "--output_dir", str(tmp_path / "first")]) == 0
    shortest = min(ResultStore(tmp_path / "first").read_table()["context_tokens"].to_pylist())
    capsys.readouterr()
    assert main([str(config), "--set", snapkv % shortest]) == 3
    failed = [row for row in store.read_table().to_pylist() if row["status"] == "failed"]
    assert [(row["item_id"], row["failure_phase"]) for row in failed] == [("longbench/qasper/row0", "plan")]
    assert "window_size" in failed[0]["failure_message"] and failed[0]["score"] is None
    assert "planned 12 = 11 ok + 0 truncated + 1 failed" in capsys.readouterr().out
    before = files_of(store)
    assert main([str(config), "--set", snapkv % shortest]) == 3
    assert files_of(store).keys() == before.keys()


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("policies=[{name: knormm, budget: 0.5}]", "did you mean 'knorm'?"),
        ("policies=[{name: knorm, budget: 0.5, windw: 3}]", "'windw'"),
        ("policies=[{name: snapkv, budget: 8, window_size: 16}]", "window_size=16"),
        ("policies=[{name: snapkv, budget: 0.5, window_size: 5000}]", "window_size=5000"),
        ("policies=[{name: no_such_module:Policy, budget: 0.5}]", "no_such_module"),
        ("tasks.0.length=100", "length"),
        ("model.name=/nowhere", "/nowhere"),
        ("model.dtype=int8", "int8"),
        ("tasks=[]", "tasks"),
    ],
)
def test_bad_input_is_told_in_a_sentence_before_anything_is_written(
    config: Path, store: ResultStore, override: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(config), "--set", override]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and complaint in err and "Traceback" not in err
    assert not store.root.exists()


@pytest.mark.parametrize("command", [[], ["validate"]])
def test_an_output_dir_that_is_a_file_is_refused(
    config: Path, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afile").touch()
    assert main([*command, str(config), "--output_dir", str(tmp_path / "afile")]) == 2
    told = f"error: --output_dir: {tmp_path}/afile is a file, not a folder; choose another output_dir\n"
    assert capsys.readouterr().err == told


def test_a_broken_line_of_data_is_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "data" / "qasper.jsonl").open("a") as file:
        file.write("\n{broken")
    assert main([str(config)]) == 2
    assert f"line {NUM_ITEMS + 1}" in capsys.readouterr().err


def test_a_damaged_result_file_is_named(
    config: Path, store: ResultStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(config), "--limit", "1"]) == 0
    path = next(iter(store.rows_folder.glob("*.parquet")))
    path.write_bytes(b"PAR1")
    assert main([str(config)]) == 2
    assert path.name in capsys.readouterr().err


def test_a_tracker_that_cannot_be_reached_stops_the_sweep_at_its_start(
    config: Path, store: ResultStore, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "{uri: 'http://127.0.0.1:9'}"
    assert main([str(config), "--set", f"tracking={uri}"]) == 2
    assert "127.0.0.1:9" in capsys.readouterr().err
    assert files_of(store) == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_keeps_rows_and_prints_a_partial_table(
    tmp_path: Path, model: Path, store: ResultStore, repo_root: Path, number: int
) -> None:
    config = save_settings(tmp_path, model, save_data(tmp_path / "data", NUM_MANY_ITEMS))
    command = [sys.executable, "jobs/sweep.py", str(config), "--set", "tasks.0.max_new_tokens=64"]
    # One thread: a tiny model gains nothing from more, and waits for them where the machine is busy.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = subprocess.Popen(
        command, cwd=repo_root, **pipes, text=True, env=environment, preexec_fn=hear_interrupts
    )
    deadline_s = time.monotonic() + TIMEOUT_S
    while not list(store.rows_folder.glob("*.parquet")) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    running.send_signal(number)
    out, err = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 130, out + err
    assert err.count(STOPPING) == 1 and "Traceback" not in err
    store.check_integrity()
    num_rows = store.read_table().num_rows
    num_planned = NUM_MANY_ITEMS * (NUM_REFERENCES + 1)
    assert 0 < num_rows < num_planned and f"planned {num_planned} = {num_rows} ok" in out and "missing" in out


@pytest.mark.parametrize(
    ("body", "code"),
    [("return super().compress(layer, evidence, budget)", 0), ("raise RuntimeError('broken')", 3)],
)
def test_a_users_own_policy_is_found_and_checked(
    tmp_path: Path, repo_root: Path, body: str, code: int
) -> None:
    (tmp_path / "my_policy.py").write_text(OWN_POLICY.format(body=body))
    command = [sys.executable, str(repo_root / "jobs" / "sweep.py"), "--check-policy", "my_policy:Mine"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "checks passed" in done.stdout and ("broken" in done.stdout) == bool(code)
    assert done.stdout.count("Traceback") == bool(code)


def test_run_meta_names_versions_and_keeps_the_sweeps_id(config: Path, store: ResultStore) -> None:
    assert main([str(config), "--limit", "1"]) == 0
    first = json.loads((store.root / "run_meta.json").read_text())
    assert main([str(config), "--limit", "2"]) == 0
    second = json.loads((store.root / "run_meta.json").read_text())
    assert first["sweep_id"] == second["sweep_id"]
    assert first["sweep_id"].startswith("tiny-")
    assert {"python", "torch", "transformers"} <= first["versions"].keys()


def test_another_model_or_mode_in_the_same_folder_is_another_sweep(config: Path, store: ResultStore) -> None:
    ids = []
    for mode in ("query_aware", "query_agnostic", "query_aware"):
        assert main([str(config), "--limit", "1", "--set", f"query_mode={mode}"]) == 0
        ids.append(json.loads((store.root / "run_meta.json").read_text())["sweep_id"])
    assert ids[0] == ids[2] != ids[1]


def test_a_tracker_that_lost_its_runs_is_sent_everything_again(config: Path, store: ResultStore) -> None:
    """The second run computes nothing and still delivers everything."""
    database = store.root.parent / "tracking.db"
    tracked = [str(config), "--limit", "1", "--set", f"tracking={{uri: 'sqlite:///{database}'}}"]
    assert main(tracked) == 0
    before = files_of(store)
    with closing(sqlite3.connect(database)) as connection:
        for table in ("latest_metrics", "metrics", "params", "tags", "runs"):
            connection.execute(f"delete from {table}")
        connection.commit()
        assert main(tracked) == 0
        assert files_of(store) == before
        labels = {it for (it,) in connection.execute("select value from tags where key = 'kvmerger.variant'")}
        (num_points,) = connection.execute(
            "select count(*) from metrics where key = 'kv_bytes/mean'"
        ).fetchone()
    assert {"full", "no_context", "full_aa", "knorm@0.5"} == labels
    assert num_points == NUM_REFERENCES + 1


def test_no_room_for_copies_costs_only_the_mirror_and_says_how_to_send_it_later(
    config: Path,
    store: ResultStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    uri = f"tracking={{uri: 'sqlite:///{tmp_path / 'tracking.db'}'}}"
    assert main([str(config), "--limit", "1", "--set", uri]) == 0
    assert store.read_table().num_rows == NUM_REFERENCES + 1
    assert "sweep.py mirror" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["mirror", str(store.root)]) == 0


def test_changed_code_of_a_users_policy_is_computed_again(
    config: Path, store: ResultStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_policy.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    policies = ["--set", "policies=[{name: 'edited_policy:Mine', budget: 0.5}]"]
    # The second is broken, and to run all the same.
    command = [str(config), "--limit", "1", *policies, "--set", "check_policies=false"]
    bodies = ("return super().compress(layer, evidence, budget)", "raise RuntimeError('broken')")
    for body, code in zip(bodies, (0, 3), strict=True):
        file.write_text(OWN_POLICY.format(body=body))
        sys.modules.pop("edited_policy", None)
        importlib.invalidate_caches()
        assert main(command) == code
