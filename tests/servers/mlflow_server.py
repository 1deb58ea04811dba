"""A real `mlflow server` on a port of its own, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

SERVER_START_LIMIT_S = 120.0


# Neither tells anybody of the tests, nor starts the workers of jobs that nobody gives it.
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class Server:
    """A real `mlflow server` on a port of its own, which can hang, go on, and be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {
            "--backend-store-uri": f"sqlite:///{self.folder / 'mlflow.db'}",
            "--artifacts-destination": str(self.folder / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        arguments = [word for option in options.items() for word in option]
        command = [sys.executable, "-m", "mlflow", "server", *arguments]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **_ENVIRONMENT},
            )
        deadline_s = time.monotonic() + SERVER_START_LIMIT_S
        while not self._is_healthy():
            assert time.monotonic() < deadline_s, (self.folder / "server.log").read_text()[-2000:]
            time.sleep(0.5)

    def hang(self) -> None:
        """Connections are accepted, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """What was asked meanwhile is answered now, whether or not somebody still waits."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Nobody listens any more."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait(timeout=10)
            self.process = None

    def _signal(self, number: int) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def get(self, path: str) -> bytes:
        """What a browser gets."""
        with urlopen(f"{self.uri}/{path}", timeout=10) as reply:
            return bytes(reply.read())

    def _is_healthy(self) -> bool:
        try:
            return self.get("health") == b"OK"
        except OSError:
            return False
