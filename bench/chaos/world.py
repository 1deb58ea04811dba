"""A sweep small enough to be run hundreds of times, and its drivers: forks of one process that has imported everything."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.fakes.own_policy import OWN_POLICY
from tests.fakes.sweeps import save_data, save_tiny_model

NUM_ITEMS = 10
_POLL_S = 0.005
_POLICY = "chaos_policy"


@dataclass(frozen=True, slots=True)
class World:
    """Settings and results of one seed, under a folder of its own."""

    folder: Path
    executor: str
    num_files: int = 0
    """How many files of rows an undisturbed run leaves."""

    @property
    def config(self) -> Path:
        """The settings."""
        return self.folder / "chaos.yaml"

    @property
    def results(self) -> Path:
        """The output_dir."""
        return self.folder / "disk" / "results"

    @property
    def database(self) -> Path:
        """MLflow's, beside the disk that fills up."""
        return self.folder / "mlflow.db"

    def write_policy(self, version: int) -> None:
        """The policy beside the settings, with another source for each version."""
        body = "return super().compress(layer, evidence, budget)"
        text = f"{OWN_POLICY.format(body=body)}\nVERSION = {version}\n"
        self.folder.joinpath(f"{_POLICY}.py").write_text(text)


def make_inputs(folder: Path) -> Path:
    """Model and data, which all worlds share."""
    save_tiny_model(folder / "model")
    save_data(folder / "data", NUM_ITEMS, num_words=60)
    return folder


def make_world(inputs: Path, folder: Path, executor: str, database: Path | None) -> World:
    """A new world; `database` is an MLflow database without runs to begin with, None to have one made."""
    world = World(folder, executor)
    shutil.rmtree(folder, ignore_errors=True)
    world.results.parent.mkdir(parents=True)
    world.write_policy(1)
    if database is not None:
        shutil.copy(database, world.database)
    settings = {
        "name": "chaos",
        "model": {"name": str(inputs / "model")},
        "tasks": [{"name": "longbench/qasper", "data": str(inputs / "data"), "max_new_tokens": 8}],
        "policies": [
            "full",
            {"name": "knorm", "budget": [0.5, 0.25]},
            {"name": f"{_POLICY}:Mine", "budget": 0.5},
        ],
        "check_policies": False,  # in a process of its own, which is not what is disturbed here
        "query_mode": "query_agnostic",
        "executor": executor,
        "output_dir": str(world.results),
        "tracking": {"uri": f"sqlite:///{world.database}"},
    }
    world.config.write_text(yaml.safe_dump(settings))
    return world


@dataclass(slots=True)
class Driver:
    """One run of the command in a process of its own; `log` receives what it prints."""

    pid: int
    log: Path
    started_s: float
    code: int | None = None

    def is_alive(self) -> bool:
        """Whether it still runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def wait_until(self, moment_s: float) -> bool:
        """Wait until so long after its start, or its end; whether it still runs."""
        while self.is_alive() and time.monotonic() - self.started_s < moment_s:
            time.sleep(_POLL_S)
        return self.is_alive()

    def end(self, limit_s: float) -> int:
        """Its exit code, negative for a signal; one that hangs is killed and counts as -9."""
        if self.wait_until(time.monotonic() - self.started_s + limit_s):
            self.send(signal.SIGKILL)
            self.wait_until(float("inf"))
        assert self.code is not None
        return self.code

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.is_alive():
            os.kill(self.pid, number)


def drive(world: World, name: str = "driver") -> Driver:
    """Start the command."""
    log = world.folder / f"{name}-{time.monotonic_ns()}.log"
    handle = os.open(log, os.O_WRONLY | os.O_CREAT, 0o644)  # here: it may be killed before it does anything
    started_s = time.monotonic()
    pid = os.fork()
    if pid:
        os.close(handle)
        return Driver(pid, log, started_s)
    code = 70
    try:
        os.setsid()
        # What a shell in the background has switched off is heard again.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        from jobs.sweep import main

        code = main([str(world.config)])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def actors_of(driver: Driver) -> list[int]:
    """Process ids of the driver's engine actors, which Ray names in their title."""
    found = []
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            title = (place / "cmdline").read_bytes()
            # A session of its own: what the driver started is known by it.
            session = int((place / "stat").read_text().rpartition(")")[2].split()[3])
        except (OSError, ValueError, IndexError):
            continue
        if session == driver.pid and title.startswith(b"ray::EngineActor"):
            found.append(int(place.name))
    return sorted(found)
