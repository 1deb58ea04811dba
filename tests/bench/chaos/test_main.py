"""The short form of the harness: a few real sweeps are killed, damaged and robbed of files, and end whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.chaos.__main__ import Tally, table
from bench.chaos.checker import Verdict


@pytest.mark.skipif(sys.platform != "linux", reason="the harness is for Linux")
def test_sweeps_survive_the_commonest_faults(repo_root: Path, seed: int) -> None:
    faults = ["driver killed", "damaged file"]
    command = [sys.executable, "-m", "bench.chaos", "--first", str(2 * (seed // 2)), "--seeds", "2"]
    done = subprocess.run(
        [*command, "--faults", *faults], cwd=repo_root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(re.search(rf"\| {name} \| 1 \| [01](?: \| 0){{5}} \|", done.stdout) for name in faults), (
        done.stdout
    )


def test_whatever_is_wrong_makes_the_end_red() -> None:
    sound, wrong = (
        Verdict(6, 0, 0, 0),
        [Verdict(5, 1, 0, 0), Verdict(7, 0, 1, 0), Verdict(6, 0, 0, 1), Verdict(6, 0, 0, 0, ("x",))],
    )
    tally = Tally()
    tally.add(sound)
    assert tally.is_sound
    for verdict in wrong:
        other = Tally()
        other.add(verdict)
        assert not other.is_sound
    assert not Tally(seeds=1, broken=["seed 3"]).is_sound
    assert "| a | 1 | 1 | 0 | 0 | 0 | 0 | 0 |" in table({"a": tally})
    tally.add(sound, is_hit=False)
    assert "| a | 2 | 1 | 0 | 0 | 0 | 0 | 0 |" in table({"a": tally})
