"""Of many tracebacks the first is shown; a policy that kills the process is told of."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from jobs.console.policy_check import Outcome, first_trace_only, summary_lines
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


def test_failures_come_first_and_the_same_words_once() -> None:
    first = traced("boom")
    outcomes = [
        Outcome("finite (float32)", True, ""),
        Outcome("kept (float32)", False, first),
        Outcome("order (float32)", False, "positions must ascend"),
        Outcome("kept (bfloat16)", False, traced("boom")),
        Outcome("order (bfloat16)", False, "positions must ascend"),
        Outcome("size (bfloat16)", False, traced("bang")),
        Outcome("finite (bfloat16)", True, ""),
    ]
    assert list(summary_lines(outcomes)) == [
        f"FAIL  kept (float32); kept (bfloat16): {first}",
        "FAIL  order (float32); order (bfloat16): positions must ascend",
        "FAIL  size (bfloat16): RuntimeError: bang",
        "ok    2 others",
    ]


def test_where_all_pass_there_is_nothing_to_read() -> None:
    assert list(summary_lines([Outcome("finite", True, "")])) == []


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
    assert "FAIL" not in done.stdout
    *_, error = done.stderr.splitlines()
    assert error == (
        f"error: policy 'my_policy:Mine' cannot be checked to the end: {how}, in the check after 'scores every token with a "
        f"number (bfloat16)'; mend what it does there"
    )
    assert ("in compress" in done.stderr) == ("abort" in kill), "the line that a fatal signal came from"
