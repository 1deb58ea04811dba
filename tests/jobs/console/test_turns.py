"""Of many processes one at a time has its turn, the next one gets it when that one dies, and nothing stays behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from jobs.console.turns import turn

_COUNT = """
import sys
from pathlib import Path
from jobs.console.turns import turn
number = Path(sys.argv[2])
for _ in range(30):
    with turn(Path(sys.argv[1]), 60) as is_mine:
        assert is_mine
        number.write_text(str(int(number.read_text()) + 1))
"""
_HOLD = """
import sys, time
from pathlib import Path
from jobs.console.turns import turn
with turn(Path(sys.argv[1]), 60):
    print("mine", flush=True)
    time.sleep(600)
"""


def test_no_two_processes_have_their_turn_at_once(tmp_path: Path, repo_root: Path) -> None:
    place, number = tmp_path / "turn", tmp_path / "number"
    number.write_text("0")
    command = [sys.executable, "-c", _COUNT, str(place), str(number)]
    running = [subprocess.Popen(command, cwd=repo_root) for _ in range(4)]
    assert [it.wait() for it in running] == [0] * 4
    assert number.read_text() == "120"
    assert not place.exists()


def test_a_death_ends_a_turn(tmp_path: Path, repo_root: Path) -> None:
    place = tmp_path / "turn"
    command = [sys.executable, "-c", _HOLD, str(place)]
    with subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"mine\n"
        with turn(place, 0.1) as is_mine:
            assert not is_mine  # told, and gone on all the same
        os.kill(other.pid, signal.SIGKILL)
        with turn(place, 60) as is_mine:
            assert is_mine
    assert not place.exists()
