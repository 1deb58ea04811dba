"""Seconds of a step come from rows that ran alone at that length, and from no others."""

import json

import pytest

from jobs.analysis.choosing.step_times import step_times
from jobs.results.schema import FAILED, Row
from tests.fakes.rows import make_row


def batch(context: str, num_rows: int, decode_s: float, record_s: float = 0.0, **values: object) -> list[Row]:
    """The rows of one variant's batch: all carry its whole seconds."""
    seconds = json.dumps({"decode_shared_s": decode_s, "record_graph_shared_s": record_s})
    return [
        make_row(f"{context}/{index}", item_id=f"{context}/{index}", cluster_id=context, variant="a@0.5")
        | {"execution": "isolated", "query_mode": "query_agnostic", "context_tokens": 1000}
        | {"seconds": seconds, "new_tokens": 3 + index}
        | values
        for index in range(num_rows)
    ]


def test_steps_follow_the_first_token_and_recording_is_none() -> None:
    rows = batch("one", 2, decode_s=0.8, record_s=0.2) + batch("two", 2, decode_s=0.9)
    (found,) = step_times(rows, (900, 1100)).values()
    # The longer answer of a batch has 4 tokens, hence 3 steps.
    assert (found.num_rows, found.num_steps) == (2, 6)
    assert found.step_s == pytest.approx(1.5 / 6) and found.tokens_per_s == pytest.approx(2 / 0.25)


def test_batches_of_other_sizes_stand_apart() -> None:
    rows = batch("one", 2, 0.6) + batch("two", 4, 1.0)
    assert {size: it.step_s for size, it in step_times(rows, (0, 9e9)).items()} == pytest.approx(
        {2: 0.2, 4: 0.2}
    )


def test_fused_failed_other_lengths_and_single_tokens_tell_nothing() -> None:
    reach = (900.0, 1100.0)
    assert step_times(batch("c", 2, 0.6, execution="fused"), reach) == {}
    assert step_times(batch("c", 2, 0.6, status=FAILED), reach) == {}
    assert step_times(batch("c", 2, 0.6, context_tokens=1200), reach) == {}
    assert step_times(batch("c", 2, 0.6, new_tokens=1), reach) == {}
    assert step_times(batch("c", 2, 0.6, seconds=None), reach) == {}
