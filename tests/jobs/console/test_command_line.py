"""Every way a command can end has its own exit code, and none of them is Python's 1."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.console.command_line import EXIT_BAD_INPUT, EXIT_BUG, EXIT_INTERRUPTED, told_to_users
from jobs.settings.errors import SettingsError


class Panic(BaseException):
    """As Rust's, which is no Exception."""


def raising(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("a sentence"), EXIT_BAD_INPUT),
        (KeyboardInterrupt(), EXIT_INTERRUPTED),
        (ValueError("not ours"), EXIT_BUG),
        (RuntimeError("Expected one of cpu, cuda"), EXIT_BUG),
        (MemoryError(), EXIT_BUG),
        (BrokenPipeError(), EXIT_BUG),
        (ModuleNotFoundError("No module named 'torch'"), EXIT_BUG),
        (Panic("rust"), EXIT_BUG),
        (SystemExit(0), EXIT_BUG),
        (SystemExit(1), EXIT_BUG),
        (SystemExit("a word"), EXIT_BUG),
    ],
)
def test_an_error_ends_in_its_own_code(error: BaseException, code: int) -> None:
    assert told_to_users(raising(error)) == code


def test_what_nobody_foresaw_is_told_with_its_trace_and_as_no_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told_to_users(raising(RuntimeError("boom")))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and "RuntimeError: boom" in lines
    assert lines[-1].startswith("error: RuntimeError: boom. ") and "no verdict" in lines[-1]


def test_a_reader_that_is_gone_changes_no_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as unwritable:
        monkeypatch.setattr(sys, "stderr", unwritable)
        assert told_to_users(raising(RuntimeError("boom"))) == EXIT_BUG


def test_argparse_keeps_its_codes() -> None:
    def run(*words: str) -> int:
        argparse.ArgumentParser().parse_args(words)
        return 0

    for words, code in ((("--help",), 0), (("--unknown",), 2)):
        with pytest.raises(SystemExit) as caught:
            told_to_users(lambda words=words: run(*words))  # type: ignore[misc]
        assert caught.value.code == code


def test_sigterm_is_an_interrupt() -> None:
    def run() -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    assert told_to_users(run) == EXIT_INTERRUPTED


def test_a_nightly_under_another_python_is_bad_input_and_no_regression(
    repo_root: Path, tmp_path: Path
) -> None:
    # Isolated and without site-packages, as a crontab that names the system's Python.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(repo_root / "jobs" / "nightly.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: No module named 'jobs'; run it with the Python that kvmerger is installed in"
    ]
