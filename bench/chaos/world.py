"""A sweep small enough to be run hundreds of times, and its drivers: forks of one process that has imported everything."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tests.fakes.own_policy import OWN_POLICY
from tests.fakes.sweeps import save_data, save_tiny_model

if TYPE_CHECKING:
    from bench.chaos.nodes import Nodes
    from tests.servers.mlflow_server import Server

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
    server: Server | None = None
    """The MLflow server that it tracks to, without one the database itself."""
    nodes: Nodes | None = None
    """The Ray cluster that its drivers join."""

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
        text = OWN_POLICY.format(body="return super().compress(layer, evidence, budget)")
        if version % 2 == 0:
            text = text.replace("-evidence.get", "evidence.get")  # it keeps what the other one drops
        arriving = self.folder / f"{_POLICY}.saved"
        arriving.write_text(f"{text}\nVERSION = {version}\n")
        arriving.replace(self.folder / f"{_POLICY}.py")


def make_inputs(folder: Path) -> Path:
    """Model and data, which all worlds share."""
    save_tiny_model(folder / "model")
    save_data(folder / "data", NUM_ITEMS, num_words=60)
    return folder


def make_world(inputs: Path, folder: Path, executor: str, database: Path, version: int = 1) -> World:
    """A new world with that version of the policy; `database` is an MLflow database without runs to begin with."""
    world = World(folder, executor)
    shutil.rmtree(folder, ignore_errors=True)
    world.results.parent.mkdir(parents=True)
    world.write_policy(version)
    shutil.copy(database, world.database)
    write_settings(world, inputs)
    return world


def write_settings(world: World, inputs: Path) -> None:
    """The sweep's, for the server and the nodes that the world has."""
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
        "executor": world.executor,
        "output_dir": str(world.results),
        "tracking": {"uri": world.server.uri if world.server else f"sqlite:///{world.database}"},
        "actors": {"num_cpus": 1} if world.nodes else {},
    }
    world.config.write_text(yaml.safe_dump(settings))


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


def drive(world: World, name: str = "driver", arguments: Sequence[str] = ()) -> Driver:
    """Start the command: the sweep, or what `arguments` say."""
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
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if world.nodes:
            os.environ["RAY_ADDRESS"] = world.nodes.address
        from jobs.sweep import main

        code = main(list(arguments) or [str(world.config)])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def actors_of(driver: Driver) -> list[int]:
    """Process ids of the engine actors of the Ray that the driver started, which Ray names in their title."""
    # A session of its own: what the driver started is known by it.
    return sorted(pid for pid, session in _engine_actors() if session == driver.pid)


def _engine_actors() -> Iterator[tuple[int, int]]:
    """Process id and session of every engine actor of this machine."""
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            title = (place / "cmdline").read_bytes()
            session = int((place / "stat").read_text().rpartition(")")[2].split()[3])
        except (OSError, ValueError, IndexError):
            continue
        if title.startswith(b"ray::EngineActor"):
            yield int(place.name), session
