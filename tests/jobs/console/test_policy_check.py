"""Of many tracebacks the first is shown; a policy that kills the process is told of."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from jobs.console.policy_check import first_trace_only
from tests.fakes.own_policy import OWN_POLICY


def traced(error: str, words: str = "") -> str:
    try:
        raise RuntimeError(error)
    except RuntimeError:
        return f"{words}{traceback.format_exc()}"


def test_the_first_traceback_is_whole_and_the_others_are_their_last_line() -> None:
    first = traced("boom", "compress raised\n")
    messages = ["nothing was kept", first, "", traced("bang"), traced("boom", "too short\n")]
    assert list(first_trace_only(messages)) == [
        "nothing was kept",
        first,
        "",
        "RuntimeError: bang",
        "too short\nRuntimeError: boom",
    ]


def test_messages_without_a_traceback_stay_whole() -> None:
    assert list(first_trace_only(["nothing was kept"] * 2)) == ["nothing was kept"] * 2


@pytest.mark.parametrize(
    ("kill", "how"),
    [
        ("os._exit(0)", "its process ended itself with exit code 0"),
        ("os.abort()", "its process died of SIGABRT"),
    ],
)
def test_a_users_own_policy_that_kills_its_check_is_told_in_a_sentence(
    tmp_path: Path, repo_root: Path, kill: str, how: str
) -> None:
    (tmp_path / "my_policy.py").write_text(OWN_POLICY.format(body=kill))
    command = [sys.executable, str(repo_root / "jobs" / "sweep.py"), "--check-policy", "my_policy:Mine"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    *_, last_check = done.stdout.splitlines()
    *_, error = done.stderr.splitlines()
    assert last_check.startswith("ok    scores every token with a number (bfloat16)")
    assert error == (
        f"error: policy 'my_policy:Mine' cannot be checked to the end: {how}, in the check after 'scores every token with a "
        f"number (bfloat16)'; mend what it does there"
    )
    assert ("in compress" in done.stderr) == ("abort" in kill), "the line that a fatal signal came from"
