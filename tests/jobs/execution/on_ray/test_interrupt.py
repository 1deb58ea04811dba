"""Ctrl-C ends a sweep with Ray actors as it ends one without: rows kept, partial table, exit code 130.

SIGTERM with actors is what a stopped job gets (`tests/deployment/test_ray_jobs.py`).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.results.store import ResultStore
from tests.fakes.sweeps import hear_interrupts, save_data, save_settings, save_tiny_model

pytestmark = pytest.mark.ray
NUM_ITEMS, NUM_ROWS_PER_ITEM = 200, 4
TIMEOUT_S = 240


def test_ctrl_c_keeps_rows_and_prints_a_partial_table(tmp_path: Path, repo_root: Path) -> None:
    config = save_settings(
        tmp_path, save_tiny_model(tmp_path / "model"), save_data(tmp_path / "data", NUM_ITEMS)
    )
    store = ResultStore(tmp_path / "results")
    # One core: a tiny model gains nothing from more, and its threads wait for each other where the machine is busy.
    sets = ("tasks.0.max_new_tokens=64", "actors={count: 1, num_cpus: 1}")
    command = [sys.executable, "jobs/sweep.py", str(config), "--executor", "ray"]
    command += [part for override in sets for part in ("--set", override)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    running = subprocess.Popen(
        command,
        cwd=repo_root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    deadline_s = time.monotonic() + TIMEOUT_S
    while not list(store.rows_folder.glob("*.parquet")) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches Ray's processes as well
    out, _ = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 130, out
    store.check_integrity()
    num_rows, num_planned = store.read_table().num_rows, NUM_ITEMS * NUM_ROWS_PER_ITEM
    assert 0 < num_rows < num_planned
    assert f"planned {num_planned} = {num_rows} ok" in out and "missing" in out and "Traceback" not in out
