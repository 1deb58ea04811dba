"""Every way a command can end has its own exit code, and none of them is Python's 1."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.console.command_line import EXIT_BAD_INPUT, EXIT_BUG, EXIT_INTERRUPTED, told_to_users
from jobs.console.paths import JOB_VARIABLE
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
        (MemoryError(), EXIT_BAD_INPUT),
        (PermissionError(13, "Permission denied", "a/b"), EXIT_BAD_INPUT),
        (OSError(28, "No space left on device", b"a/b"), EXIT_BAD_INPUT),
        (OSError("no file in it"), EXIT_BUG),
        (BrokenPipeError(), EXIT_BUG),
        (ModuleNotFoundError("No module named 'scipy.x'", name="scipy.x"), EXIT_BAD_INPUT),
        (ModuleNotFoundError("No module named 'jobs.x'", name="jobs.x"), EXIT_BUG),
        (ModuleNotFoundError("No module named 'torch'"), EXIT_BUG),
        (Panic("rust"), EXIT_BUG),
        (SystemExit(0), EXIT_BUG),
        (SystemExit(1), EXIT_BUG),
        (SystemExit("a word"), EXIT_BUG),
    ],
)
def test_an_error_ends_in_its_own_code(error: BaseException, code: int) -> None:
    assert told_to_users(raising(error)) == code


def test_a_bug_is_told_without_its_stack_which_lies_in_a_file_without_passwords(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--set", "tracking.uri=http://joe:Kn0ck@h"])
    told_to_users(raising(RuntimeError("boom at http://joe:Kn0ck@h")))
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("error: RuntimeError: boom at ") and "no verdict" in first
    (report,) = tmp_path.glob("kvmerger-bug-*.txt")
    assert str(report) in last
    stack = report.read_text()
    assert "Traceback" in stack and "sweep.py --set" in stack and "Kn0ck" not in first + stack


@pytest.mark.parametrize("variable", [JOB_VARIABLE, None])
def test_a_stack_that_no_file_would_keep_is_printed(
    variable: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, "{}")
    else:
        monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    told_to_users(raising(RuntimeError("boom")))
    assert "Traceback" in capsys.readouterr().err


def test_a_log_of_any_library_has_no_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        handler = logging.StreamHandler()
        logger = logging.getLogger("somebody.else")
        logger.addHandler(handler)
        try:
            raise OSError("no http://joe:Kn0ck@h/x?token=Kn1ck")
        except OSError:
            logger.exception("at %s", "http://joe:Kn0ck@h")
        logger.removeHandler(handler)
        return 0

    before = logging.getLogRecordFactory()
    told_to_users(run)
    err = capsys.readouterr().err
    assert "Kn" not in err and err.count("http://…@h") == 3
    assert logging.getLogRecordFactory() is before


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
