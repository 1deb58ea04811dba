"""What cannot be resolved is said before the night, with how many contexts would do."""

from __future__ import annotations

import re

import numpy as np
import pytest

from evaluators.statistics.noninferiority import no_worse_than
from jobs.gate.resolution import Resolution, resolutions
from jobs.settings.gate import GateSettings, MarginSettings
from tests.fakes.pairs import paired_rows


def settings(points: float, nats: float = 0.05, flips: float = 2.0) -> GateSettings:
    return GateSettings(
        margins=MarginSettings(score_points=points, nll_nats=nats), assumed_flip_percent=flips
    )


def of_scores(found: tuple[Resolution, ...]) -> Resolution:
    (score,) = [it for it in found if it.metric == "score"]
    return score


@pytest.mark.parametrize(
    ("num_contexts", "points", "is_resolved"), [(182, 2, False), (183, 2, True), (49, 90, False)]
)
def test_scores_that_do_not_flip_are_resolved_as_the_exact_bound_says(
    seed: int, num_contexts: int, points: float, is_resolved: bool
) -> None:
    rows = paired_rows(seed, 60)
    score = of_scores(resolutions({"benchmark/a": num_contexts}, rows, settings(points)))
    assert score.is_resolved == is_resolved
    if num_contexts > 50:
        same = [0.5] * num_contexts
        verdict = no_worse_than(same, same, range(num_contexts), points / 100, largest_loss=1.0).verdict
        assert (verdict == "pass") == is_resolved and score.needed == 183


def test_what_is_needed_is_enough_and_one_less_is_not() -> None:
    gate = settings(2, flips=10)
    needed = of_scores(resolutions({"t": 1_000}, [], gate)).needed
    assert needed is not None and needed > 1_000
    assert of_scores(resolutions({"t": needed + 10}, [], gate)).is_resolved
    assert not of_scores(resolutions({"t": needed - 50}, [], gate)).is_resolved


def test_the_baselines_own_noise_decides_where_it_has_some(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        row | {"answer_nll": row["answer_nll"] + rng.normal(0, 0.5)} if row["variant"] == "full_aa" else row
        for row in paired_rows(seed, 60)
    ]
    (nll,) = [it for it in resolutions({"benchmark/a": 60}, rows, settings(2)) if it.metric == "NLL"]
    assert not nll.is_resolved and nll.smallest == pytest.approx(2.86 * 0.5 / np.sqrt(60), rel=0.4)
    (quarter,) = [it for it in resolutions({"benchmark/a": 240}, rows, settings(2)) if it.metric == "NLL"]
    assert quarter.smallest == pytest.approx(nll.smallest / 2)


@pytest.mark.parametrize(
    ("points", "remedy"),
    [
        (90, "give it at least 50"),
        (200, "give it at least 50"),
        (2, "give it at least 183, or 50 and a wider margin"),
    ],
)
def test_no_margin_is_wide_enough_for_fewer_contexts_than_any_verdict_needs(
    seed: int, points: float, remedy: str
) -> None:
    found = str(of_scores(resolutions({"benchmark/a": 3}, paired_rows(seed, 60), settings(points))))
    assert found.endswith(f"3 contexts carry no verdict, whatever the margin; {remedy}")


def test_the_sentence_has_the_numbers_and_the_remedy(seed: int) -> None:
    few, many = (str(of_scores(resolutions({"a/b": number}, [], settings(2)))) for number in (10, 100))
    assert few.startswith("a/b, score: 10 contexts carry no verdict, whatever the margin; give it at least ")
    assert re.match(
        r"a/b, score: 100 contexts resolve \S+ points, the margin is 2; give it at least \d+, or", many
    )
