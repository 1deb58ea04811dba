"""What the CronJob's pod runs, on a real token-protected Ray: its end is the night's end, and killed it stops the night."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray.job_submission import JobStatus

from tests.servers.ray_head import CALL_TIMEOUT_S, RAY, RayHead, ray_head

pytestmark = pytest.mark.ray
PYTHON, NIGHTLY = "/opt/kvmerger/.venv/bin/python", "/opt/kvmerger/jobs/nightly.py"


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(RAY_JOB_STOP_WAIT_TIME_S="60") as made:
        yield made


class Pod:
    """The container's command with its environment; another script stands in for the night."""

    def __init__(self, head: RayHead, repo_root: Path, folder: Path) -> None:
        self.head, self.folder = head, folder
        text = (repo_root / "jobs" / "schedules" / "cronjob.yaml").read_text(encoding="utf-8")
        pod = yaml.safe_load(text)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (self.container,) = pod["containers"]

    def start(self, name: str, night: str, **changes: str) -> "subprocess.Popen[str]":
        """The pod `name`, whose night runs the Python code `night`."""
        script = self.folder / f"{name}.py"
        script.write_text(night)
        (text,) = self.container["args"]
        assert PYTHON in text and NIGHTLY in text
        command = text.replace(PYTHON, sys.executable).replace(NIGHTLY, str(script))
        token = Path(self.head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        known = {"RAY_API_SERVER_ADDRESS": self.head.dashboard, "RAY_AUTH_TOKEN": token, "POD_NAME": name}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        for variable in self.container["env"]:
            environment[variable["name"]] = known.get(variable["name"], variable.get("value", ""))
        environment |= {"PATH": f"{Path(RAY).parent}:{os.environ['PATH']}"} | changes
        return subprocess.Popen(
            [*self.container["command"], command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def status(self, name: str) -> JobStatus | None:
        """Of the night; None where there is none."""
        token = Path(self.head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(
            f"{self.head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_S) as answer:
            statuses = {job["submission_id"]: job["status"] for job in json.load(answer)}
        return JobStatus(statuses[name]) if name in statuses else None


@pytest.fixture
def pod(head: RayHead, repo_root: Path, tmp_path: Path) -> Pod:
    return Pod(head, repo_root, tmp_path)


def test_a_night_that_passes_ends_with_0_and_its_words_are_the_pods(pod: Pod) -> None:
    process = pod.start("passes", "import sys; print('verdict: pass', *sys.argv[1:])")
    output, _ = process.communicate(timeout=CALL_TIMEOUT_S)
    assert process.returncode == 0, output
    assert "verdict: pass --config /etc/kvmerger/nightly.yaml --executor ray" in output


def test_the_code_of_any_other_night_is_in_the_last_lines(pod: Pod) -> None:
    process = pod.start("inconclusive", "raise SystemExit(4)")
    output, _ = process.communicate(timeout=CALL_TIMEOUT_S)
    assert process.returncode == 1, output
    # FallbackToLogsOnError keeps 80 lines or 2,048 bytes.
    assert "exit code 4" in "\n".join(output.splitlines()[-80:])[-2048:]


def test_a_pod_with_another_token_submits_nothing(pod: Pod) -> None:
    process = pod.start("stranger", "print('ran')", RAY_AUTH_TOKEN="0" * 64)
    output, _ = process.communicate(timeout=CALL_TIMEOUT_S)
    assert process.returncode != 0 and "ran" not in output.splitlines()
    assert pod.status("stranger") is None


def test_a_killed_pod_stops_its_night_and_waits_for_its_table(pod: Pod) -> None:
    started = pod.folder / "started"
    night = f"""
import pathlib, signal, sys, time
def table(*_):
    print("partial table", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, table)
pathlib.Path({str(started)!r}).touch()
time.sleep(600)
"""
    process = pod.start("killed", night)
    deadline_s = time.monotonic() + CALL_TIMEOUT_S
    while not started.exists():
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=CALL_TIMEOUT_S)
    assert process.returncode == 130, output  # `ray job submit` itself ends with 0 here
    assert "partial table" in output and "stopped before its end" in output
    assert pod.status("killed") is JobStatus.STOPPED
