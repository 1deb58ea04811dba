"""The simulation can fail: it finds a best policy that is ruled out, and one that is not."""

import re

import numpy as np
import pytest

from bench.statistics import leaders
from bench.statistics.leaders import WORLDS, World, is_best_ruled_out, main
from jobs.analysis.pairing import ANSWER_NLL


def test_a_policy_that_is_far_from_best_is_ruled_out(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    world = World(ANSWER_NLL, 3, 60)
    monkeypatch.setattr(leaders, "_HAIR", -9.0)
    assert is_best_ruled_out(world, rng)
    monkeypatch.setattr(leaders, "_HAIR", 9.0)
    assert not is_best_ruled_out(world, rng)


def test_it_prints_a_line_for_each_kind_of_world(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--worlds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(WORLDS) and all(
        re.search(r"ruled out in \d+\.\d% of 2 worlds", it) for it in lines
    )
