"""Every row of a policy has one outcome, and where not all rows fit, each outcome is still there."""

import random

import pytest

from jobs.analysis.item_outcomes import (
    BOTH_RIGHT,
    BOTH_WRONG,
    FAILED_ROW,
    GAINED,
    LOST,
    LOST_LITTLE,
    OUTCOMES,
    UNSCORED,
    item_list,
)
from jobs.results.schema import FAILED, Row
from tests.fakes.rows import make_row, make_sweep_rows


def pair_of(score: float | None, full: float | None) -> list[Row]:
    values = {"benchmark": "b", "task": "t", "item_id": "i"}
    return [
        make_row("f", variant="full", score=full, **values),
        make_row("p", variant="a@0.5", score=score, **values),
    ]


@pytest.mark.parametrize(
    ("score", "full", "outcome"),
    [
        (0.0, 1.0, LOST),
        (0.7, 0.8, BOTH_RIGHT),  # 0.8 - 0.7 is a little more than 0.1
        (0.69, 0.8, LOST),
        (0.1, 0.4, LOST_LITTLE),
        (1.0, 0.0, GAINED),
        (0.45, 0.4, BOTH_WRONG),
        (0.0, 0.0, BOTH_WRONG),
        (1.0, 1.0, BOTH_RIGHT),
        (None, 1.0, UNSCORED),
        (1.0, None, UNSCORED),
    ],
)
def test_an_outcome_is_by_both_scores(score: float | None, full: float | None, outcome: str) -> None:
    found = item_list(pair_of(score, full), 10)
    assert [it.outcome for it in found.shown] == [outcome] and found.num_of == {outcome: 1}


def test_a_failed_row_and_one_without_the_full_cache_are_listed() -> None:
    rows = pair_of(1.0, 1.0)
    rows[1] |= {"status": FAILED, "score": None, "prediction": None, "answers": None}
    assert item_list(rows, 10).num_of == {FAILED_ROW: 1}
    assert item_list(pair_of(1.0, 1.0)[1:], 10).num_of == {UNSCORED: 1}
    assert item_list(pair_of(1.0, 1.0)[:1], 10).num_all == 0


def test_all_rows_of_policies_are_counted_and_the_largest_losses_stand_first(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.25": 0.25}, ["b/t", "b/u"], 9)
    found = item_list(rows, 1000)
    assert found.num_all == len(found.shown) == 36 == sum(found.num_shown_of.values())
    losses = [((it.full_score or 0) - (it.score or 0), it.nll_loss or 0) for it in found.shown]
    assert losses == sorted(losses, reverse=True)
    assert set(found.num_of) <= set(OUTCOMES)


@pytest.mark.parametrize("most", [0, 1, 7, 20, 36])
def test_a_short_list_has_every_outcome_and_of_each_what_loses_most(most: int, seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.25": 0.25}, ["b/t", "b/u"], 9)
    whole, short = item_list(rows, 1000), item_list(rows, most)
    assert len(short.shown) == most and short.num_of == whole.num_of
    for outcome in short.num_of:
        of_whole = [it for it in whole.shown if it.outcome == outcome]
        of_short = [it for it in short.shown if it.outcome == outcome]
        assert of_short == of_whole[: len(of_short)]
        assert of_short or most < len(short.num_of)
