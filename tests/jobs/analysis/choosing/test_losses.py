"""A context is lost with its worst item, and no row that is missing or has failed is taken for one that loses nothing."""

import math
import random

import pytest

from jobs.analysis.choosing.losses import LOSS_KINDS, ChoiceError, loss_kind, lost_contexts, sample_of
from jobs.results.schema import FAILED, TRUNCATED, Row
from tests.fakes.rows import make_row

SCORE = LOSS_KINDS["score"]


def rows_of(label: str, values: dict[str, list[float | None]], column: str = "score") -> list[Row]:
    """A row of every item of every context."""
    return [
        make_row(
            f"{label}/{context}/{index}", item_id=f"{context}/{index}", cluster_id=context, variant=label
        )
        | {column: value}
        for context, items in values.items()
        for index, value in enumerate(items)
    ]


def test_one_bad_item_of_many_loses_its_context(seed: int) -> None:
    rng = random.Random(seed)
    full = rows_of("full", {f"c{it}": [1.0] * 5 for it in range(20)})
    bad = sorted(rng.sample(range(20), 7))
    values: dict[str, list[float | None]] = {f"c{it}": [1.0, 0.95, 1.0, 0.9, 1.0] for it in range(20)}
    for it in bad:
        values[f"c{it}"][rng.randrange(5)] = rng.uniform(0.0, 0.89)
    policy = rows_of("p", values)
    rng.shuffle(policy)
    sample = sample_of(full + policy, SCORE, keeps_cut=False)
    assert sample.num_contexts == 20
    assert lost_contexts(policy, sample, SCORE, 0.1) == {"loses more": 7}


def test_a_loss_of_exactly_what_is_allowed_is_allowed() -> None:
    """0.8 - 0.7 and 1.0 - 0.9 are not the same number to a computer."""
    full = rows_of("full", {"a": [0.8], "b": [1.0], "c": [0.4], "d": [0.4]})
    policy = rows_of("p", {"a": [0.7], "b": [0.9], "c": [0.3], "d": [0.2999]})
    assert lost_contexts(policy, sample_of(full, SCORE, False), SCORE, 0.1) == {"loses more": 1}


def test_rows_that_failed_are_missing_or_have_no_number_count_as_lost() -> None:
    full = rows_of("full", {it: [0.0, 0.0] for it in "abcd"})
    policy = rows_of("p", {"a": [0.0, 0.0], "b": [0.0, None], "c": [0.0], "d": [0.0, 0.0]})
    policy[-1] |= {"status": FAILED}
    lost = lost_contexts(policy, sample_of(full, SCORE, False), SCORE, 0.1)
    assert lost == {"no number": 1, "no row": 1, "failed": 1}
    infinite = rows_of("p", {"a": [math.inf]}, "answer_nll")
    sample = sample_of(rows_of("full", {"a": [1.0]}, "answer_nll"), LOSS_KINDS["nll"], False)
    assert lost_contexts(infinite, sample, LOSS_KINDS["nll"], 5.0) == {"no number": 1}


def test_contexts_that_the_full_cache_cannot_judge_are_left_out_with_a_reason() -> None:
    rows = rows_of("full", {"a": [1.0, 1.0], "b": [1.0, None], "c": [1.0], "d": [1.0]})
    rows += rows_of("p", {"e": [1.0]})
    rows[-2] |= {"status": FAILED}
    rows[4] |= {"status": TRUNCATED}
    sample = sample_of(rows, SCORE, keeps_cut=False)
    assert set(sample.full) == {"a"}
    assert sample.left_out == {
        "the full cache has no score": 1,
        "a prompt was cut": 1,
        "the full cache failed": 1,
        "the full cache has no row": 1,
    }
    assert set(sample_of(rows, SCORE, keeps_cut=True).full) == {"a", "c"}


@pytest.mark.parametrize(
    ("name", "full", "policy", "loss"),
    [
        ("score", 0.9, 0.6, 0.3),
        ("nll", 0.5, 0.9, 0.4),
        ("kl", 0.0, 0.2, 0.2),
        ("top1", 1.0, 0.75, 0.25),
    ],
)
def test_a_loss_is_positive_where_the_policy_is_worse(
    name: str, full: float, policy: float, loss: float
) -> None:
    assert loss_kind(name).loss(policy, full) == pytest.approx(loss)
    assert loss_kind(LOSS_KINDS[name].metric.column) is loss_kind(name)


def test_where_the_full_cache_has_nothing_nothing_can_be_lost() -> None:
    sample = sample_of(rows_of("full", {"a": [0.0], "b": [0.05, 0.1], "c": [0.0, 1.0]}), SCORE, False)
    assert sample.num_safe(SCORE, 0.1) == 2 and sample.num_safe(LOSS_KINDS["nll"], 0.1) == 0


def test_an_unknown_metric_is_told_with_the_nearest() -> None:
    with pytest.raises(ChoiceError, match="Did you mean 'score'"):
        loss_kind("scores")
