"""A token-protected Ray head of a test's own: started as a user starts it, and gone afterwards whatever happened.

Never `ray stop`: it would end every Ray of this machine.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

START_TIMEOUT_S = 120
CALL_TIMEOUT_S = 300
RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class RayHead:
    """`environment` is what every side needs, the token included."""

    gcs: str
    dashboard: str
    environment: dict[str, str]
    folder: Path

    def call(
        self, *command: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; stdout and stderr come together."""
        return subprocess.run(
            command,
            cwd=cwd,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=CALL_TIMEOUT_S,
        )

    def submit(self, working_dir: Path, *entrypoint: str, options: tuple[str, ...] = ()) -> list[str]:
        """The command line that submits a job."""
        where = ("--address", self.dashboard, "--working-dir", str(working_dir))
        return [RAY, "job", "submit", *where, *options, "--", *entrypoint]


def free_ports(count: int) -> list[int]:
    """Ports nobody listens at right now."""
    sockets = [socket.socket() for _ in range(count)]
    for it in sockets:
        it.bind(("127.0.0.1", 0))
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports


@contextmanager
def ray_head(*options: str, **extra_environment: str) -> Iterator[RayHead]:
    """`ray start --head` with 2 CPUs, a token, free ports and a folder of its own; it inherits no PYTHONPATH."""
    folder = Path(tempfile.mkdtemp(prefix="kvr", dir="/tmp"))  # short: sockets in it have 107 letters at most
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    gcs, dashboard, *others = free_ports(7)
    names = (
        "ray-client-server-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
    )
    command = [
        RAY, "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0", f"--temp-dir={folder}",
        f"--port={gcs}", f"--dashboard-port={dashboard}", "--disable-usage-stats",
        "--object-store-memory=104857600", *(f"--{name}={port}" for name, port in zip(names, others, strict=True)),
        *options,
    ]  # fmt: skip
    bare = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
    with (folder / "start.log").open("w") as log:
        head = subprocess.Popen(
            command, cwd=folder, env=bare | extra_environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        made = RayHead(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment, folder)
        _wait_until_ready(made, head, token.read_text())
        yield made
    finally:
        kill_tree(head.pid)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def kill_tree(pid: int) -> None:
    """Kill a process with all its descendants; safe when it is gone."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for it in family:
        try:
            it.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=20)


def _wait_until_ready(head: RayHead, process: subprocess.Popen[bytes], token: str) -> None:
    request = urllib.request.Request(
        f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            has_ended = process.poll() is not None
            assert not has_ended and time.monotonic() < deadline_s, (head.folder / "start.log").read_text()
            time.sleep(0.5)
