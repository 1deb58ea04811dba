"""Only items that both have are pairs, and every other one is counted with its reason."""

from typing import Any

import pytest

from jobs.analysis.pairing import ANSWER_NLL, METRICS, SCORE, pair
from jobs.results.schema import FAILED, TRUNCATED, Row
from tests.fakes.rows import make_row


def row(item: str, score: float | None, **values: Any) -> Row:
    return make_row(item, item_id=item, cluster_id=f"c{item}", score=score, **values)


def test_pairs_are_the_common_items_in_the_order_of_their_ids() -> None:
    policy = [row("3", 0.3), row("1", 0.1), row("2", 0.2)]
    reference = [row("1", 1.0), row("2", 2.0), row("3", 3.0)]
    got = pair(policy, reference, "score")
    assert (got.item_ids, got.policy, got.reference) == (("1", "2", "3"), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert got.clusters == ("c1", "c2", "c3") and got.dropped == {}
    assert pair(policy[::-1], reference[::-1], "score") == got


def test_every_item_is_a_pair_or_dropped_with_its_reason() -> None:
    policy = [
        row("1", 1.0),
        row("2", None),
        row("3", 1.0, status=FAILED),
        row("4", float("nan")),
        row("5", 1.0),
    ]
    reference = [row("1", 0.0, status=TRUNCATED), *(row(it, 0.0) for it in "2346")]
    got = pair(policy, reference, "score", names=("new", "old"))
    assert got.item_ids == ("1",)
    assert got.dropped == {"no score in new": 2, "failed in new": 1, "no row in old": 1, "no row in new": 1}


def test_scores_of_zero_and_one_are_binary_and_nothing_is_not() -> None:
    assert pair([row("1", 1.0)], [row("1", 0.0)], "score").is_binary
    assert not pair([row("1", 0.5)], [row("1", 0.0)], "score").is_binary
    assert not pair([], [], "score").is_binary


def test_bytes_are_means_over_the_pairs_alone() -> None:
    policy = [row("1", 1.0, kv_bytes=10), row("2", 1.0, kv_bytes=20), row("3", 1.0, kv_bytes=900)]
    got = pair(policy, [row("1", 1.0), row("2", 1.0)], "score")
    assert (got.policy_storage.held_bytes, got.reference_storage.held_bytes) == (pytest.approx(15), None)


def test_a_gain_is_what_is_better() -> None:
    assert (SCORE.gain(0.1), ANSWER_NLL.gain(0.1)) == (0.1, -0.1)


def test_no_difference_of_kl_is_told() -> None:
    """Comparison, report, gate and MLflow take `METRICS`; their intervals miss a mean that a few items carry, as KL's is."""
    assert {it.column for it in METRICS} == {"score", "answer_nll"}
