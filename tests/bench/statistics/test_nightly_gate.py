"""The simulated nights know the truth, and their verdicts are the shipped gate's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.statistics.coverage import RECORDED
from bench.statistics.nightly_gate import main, simulate
from bench.statistics.simulated_nights import (
    Draw,
    Recorded,
    Scores,
    holm_adjusted,
    lost_answers,
    null_night,
    recorded_tasks,
    two_bits,
    verdicts,
)
from evaluators.statistics.macro_average import TaskPairs
from evaluators.statistics.paired_tests import holm
from jobs.gate.check import Check, with_correction
from jobs.gate.paired import PairedTask, Scale, paired_check, passed_everywhere
from jobs.settings.gate import GateSettings

MARGIN = 0.02


@pytest.fixture
def recorded(seed: int) -> list[Recorded]:
    """Made-up tasks: one with many small differences, one with few flips of whole items."""
    rng = np.random.default_rng(seed)
    full = rng.beta(1, 1, size=300)
    right = (rng.random(300) < 0.6).astype(float)
    flipped = np.where(rng.random(300) < 0.03, 1 - right, right)
    small = np.clip(full + rng.normal(0, 0.1, 300), 0, 1)
    return [
        Recorded("F1", full, small, np.clip(small - 0.1, 0, 1)),
        Recorded("binary", right, flipped, np.where(rng.random(300) < 0.1, 0, right)),
    ]


def shipped(tasks: list[Scores], noises: list[Scores], night: int, label: str) -> list[Check]:
    """One policy's checks of one night, by the code that users run, not yet corrected."""
    paired = []
    for place, both in enumerate(zip(tasks, noises, strict=True)):
        clusters = range(both[0].tonight_DI.shape[1])
        pairs, noise = (
            TaskPairs(it.tonight_DI[night].tolist(), it.baseline_DI[night].tolist(), clusters) for it in both
        )
        paired.append(PairedTask(f"task {place}", tuple(map(str, clusters)), pairs, noise, {}))

    def scale(largest: float | None) -> Scale:
        return Scale("quality", "score", "points", MARGIN, lambda loss: 100 * loss, largest)

    checks = [paired_check(scale(1.0), label, [it]) for it in paired]
    mean = paired_check(scale(None), label, paired)
    return [*checks, passed_everywhere(mean) if {it.verdict for it in checks} == {"pass"} else mean]


@pytest.mark.parametrize("num_items", [50, 70, 120])
@pytest.mark.parametrize("draw", [null_night, lost_answers(0.03), lost_answers(0.12)])
def test_the_fast_verdicts_are_the_shipped_ones(
    recorded: list[Recorded], seed: int, num_items: int, draw: Draw
) -> None:
    rng, num_nights = np.random.default_rng([seed, num_items]), 12
    shape = (num_nights, num_items)
    policies = [[it(task, shape, rng) for task in recorded] for it in (draw, null_night)]
    noises = [[null_night(task, shape, rng) for task in recorded]] * 2
    fast = verdicts(policies, noises, MARGIN, 0.05)
    for night in range(num_nights):
        checks = [
            check
            for place, (tasks, noise) in enumerate(zip(policies, noises, strict=True))
            for check in shipped(tasks, noise, night, f"policy {place}")
        ]
        slow = [it.verdict for it in with_correction(checks, GateSettings())]
        assert [it == "pass" for it in slow] == fast.passes_DK[night].tolist()
        assert [it == "fail" for it in slow] == fast.fails_DK[night].tolist()


def test_holm_is_holm(seed: int) -> None:
    p_DK = np.random.default_rng(seed).random((20, 7)) ** 3
    for row, adjusted in zip(p_DK, holm_adjusted(p_DK), strict=True):
        expected = [it.adjusted_p for it in holm(dict(enumerate(row.tolist()))).values()]
        assert adjusted.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("draw", "truth"), [(null_night, 0.0), (lost_answers(0.03), -0.03), (two_bits(0.03), -0.03)]
)
def test_draws_have_the_loss_they_claim(
    recorded: list[Recorded], seed: int, draw: Draw, truth: float
) -> None:
    for task in recorded:
        scores = draw(task, (2_000, 100), np.random.default_rng(seed))
        found = scores.tonight_DI - scores.baseline_DI
        assert found.mean() == pytest.approx(truth, abs=5 * found.std() / np.sqrt(found.size))


def test_null_nights_flip_as_often_as_the_records(recorded: list[Recorded], seed: int) -> None:
    for task in recorded:
        scores = null_night(task, (500, 100), np.random.default_rng(seed))
        share = (scores.tonight_DI != scores.baseline_DI).mean()
        assert share == pytest.approx(task.flip_ratio, abs=0.02)


def test_a_large_loss_is_found_and_none_is_not(recorded: list[Recorded], seed: int) -> None:
    quiet = [null_night] * 2
    lost = simulate(recorded, 50, 150, [[lost_answers(0.2)] * 2, quiet], seed, MARGIN)
    assert lost.fails_DK[:, 2].all() and not lost.fails_DK[:, 3:].any()
    assert not simulate(recorded, 50, 150, [quiet, quiet], seed, MARGIN).fails_DK.any()


def test_the_command_prints_its_tables_or_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--recorded", str(tmp_path)]) == 2
    assert "name their folder with" in capsys.readouterr().out
    if not recorded_tasks(RECORDED):
        pytest.skip(f"no recorded scores at {RECORDED}")
    assert main(["--nights", "4"]) == 0
    out = capsys.readouterr().out
    assert "false alarms" in out and "loses 3 points" in out and "4 nights a line" in out
