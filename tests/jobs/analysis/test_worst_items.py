"""The worst items: largest loss first, each item once."""

import random
from typing import Any

from jobs.analysis.worst_items import worst_items
from jobs.results.schema import Row
from tests.fakes.rows import make_row


def pair(item: str, nll: float | None, score: float | None, label: str = "knorm@0.5") -> list[Row]:
    shared: dict[str, Any] = {"item_id": item, "prompt_tail": "who?", "answers": ["me"]}
    return [
        make_row(f"{item}/full/{label}", variant="full", policy="full", answer_nll=1.0, score=1.0, **shared),
        make_row(f"{item}/{label}", variant=label, policy="knorm", answer_nll=nll, score=score, **shared),
    ]


def test_the_three_largest_losses_come_first(seed: int) -> None:
    losses = random.Random(seed).sample(range(1, 100), 8)
    rows = [row for loss in losses for row in pair(f"i{loss}", 1.0 + loss, 1.0)]
    (found,) = worst_items(rows)
    expected = sorted(losses, reverse=True)[:3]
    assert [loss.item_id for loss in found.losses] == [f"i{loss}" for loss in expected]
    assert [loss.nll_loss for loss in found.losses] == expected


def test_an_item_is_shown_once_under_its_worst_budget() -> None:
    (found,) = worst_items(pair("i", 2.0, 1.0, "knorm@0.5") + pair("i", 3.0, 1.0, "knorm@0.3"))
    assert [loss.policy.label for loss in found.losses] == ["knorm@0.3"]


def test_the_score_decides_where_there_is_no_nll() -> None:
    (found,) = worst_items(pair("a", None, 0.5) + pair("b", None, 0.0) + pair("c", None, 1.0))
    assert [(loss.item_id, loss.score_loss) for loss in found.losses] == [("b", 1.0), ("a", 0.5)]


def test_a_policy_that_loses_nothing_is_left_out() -> None:
    assert worst_items(pair("i", 0.5, 1.0)) == []


def test_without_the_full_cache_there_is_no_loss() -> None:
    assert worst_items(pair("i", 2.0, 0.0)[1:]) == []
