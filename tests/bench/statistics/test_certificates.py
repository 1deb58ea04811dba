"""The simulation counts what users would be shown: its fast rule is the shipped one, and its worlds are as they say."""

import numpy as np
import pytest

from bench.statistics.certificates import (
    ERROR,
    NUM_POLICIES,
    SHARE,
    after_a_mild_one,
    any_false,
    at_the_boundary,
    lost_alike,
    over_tasks,
    simulate_questions,
)
from jobs.analysis.choosing.certificates import Contract, certify
from jobs.results.schema import Row
from tests.fakes.rows import make_row


def rows_of_world(lost_PL: np.ndarray, num_contexts: int) -> list[Row]:
    """Rows of which each level loses so many contexts; budgets fall from level to level."""
    variants = {"full": (0, None)} | {
        f"p{policy}@{0.9 - level / 10}": (int(lost), 0.9 - level / 10)
        for policy, levels in enumerate(lost_PL)
        for level, lost in enumerate(levels)
    }
    return [
        make_row(f"{label}/{index}", item_id=str(index), cluster_id=str(index), variant=label)
        | {"policy": label.partition("@")[0], "score": float(index >= lost)}
        | {"budget_asked": "null" if share is None else f'{{"kept_ratio": {share}}}'}
        for label, (lost, share) in variants.items()
        for index in range(num_contexts)
    ]


def test_the_fast_rule_is_the_shipped_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_contexts, worlds = 130, 4
    lost_WPL = rng.integers(0, 3, size=(worlds, 20, 2))
    fast_W = any_false(lost_WPL, num_contexts, 1, ERROR / NUM_POLICIES)
    for world in range(worlds):
        (group,) = certify(
            rows_of_world(lost_WPL[world], num_contexts), Contract(share=SHARE, confidence=1 - ERROR)
        ).groups
        assert any(chain.num_certified > 1 for chain in group.chains) == fast_W[world]


@pytest.mark.parametrize("draw", [at_the_boundary, after_a_mild_one, over_tasks])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_last_budget_loses_on_the_share_asked_for(draw: object, correlation: float, seed: int) -> None:
    assert callable(draw)
    num_contexts, worlds = 120, 400
    lost_WPL = draw(num_contexts, correlation, worlds, np.random.default_rng(seed))
    # Worlds are independent, policies in one are not: the error of the mean comes from the worlds' own means.
    means_W = lost_WPL[:, :, -1].mean(axis=1) / num_contexts
    error = means_W.std() / np.sqrt(worlds)
    assert abs(means_W.mean() - SHARE) < 5 * error


def test_policies_share_their_hard_contexts(seed: int) -> None:
    """What varies from world to world is the mean over policies, if all meet the same contexts."""
    rng = np.random.default_rng(seed)
    alone, alike = (
        lost_alike(np.full((200, 1), SHARE), correlation, 300, rng)[:, :, 0].mean(axis=1).var()
        for correlation in (0.0, 0.9)
    )
    assert alike > 4 * alone


def test_an_order_that_is_not_kept_certifies_more() -> None:
    """The second budget is good by chance, the first is not."""
    lost_WPL = np.array([[[9, 0]]])
    assert not any_false(lost_WPL, 100, 0, 0.05).any()
    assert any_false(lost_WPL, 100, 0, 0.05, keeps_order=False).all()
    assert not any_false(lost_WPL * 0, 50, 0, 0.05).any()


def test_questions_are_no_units_where_they_share_a_context(seed: int) -> None:
    by_context, by_question = simulate_questions(117, 0.9, 500, seed)
    assert by_context < by_question / 4
