"""An interrupt is answered at once, once, and leaves the handlers as they were."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.console.interrupts import STOPPING, sigterm_interrupts, told_interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_told_once_and_every_time_raised(
    number: signal.Signals, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "__stderr__", os.fdopen(os.dup(2), "w"))
    with told_interrupts():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
    sys.__stderr__.close()
    assert capfd.readouterr().err == f"\n{STOPPING}\n"


def test_handlers_of_before_are_back_and_one_inside_still_tells(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with told_interrupts():
        # As Ray's own handlers are replaced, in the middle of a run.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with sigterm_interrupts(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err.count(STOPPING) <= 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_without_a_run_nothing_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with sigterm_interrupts(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err == ""


def test_where_ctrl_c_is_switched_off_it_stays_so(repo_root: Path) -> None:
    program = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from jobs.console.interrupts import told_interrupts\n"
        "with told_interrupts():\n    signal.raise_signal(signal.SIGINT)\nprint('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "went on\n"
