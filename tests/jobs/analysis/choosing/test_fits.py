"""What fits is counted from measured bytes, and ranked by loss with failed rows behind all others."""

import json
import math
import random
from typing import Any

import pytest

from jobs.analysis.choosing.fits import Demand, Fit, what_fits
from jobs.analysis.choosing.losses import LOSS_KINDS, ChoiceError
from jobs.results.schema import FAILED, Row
from tests.fakes.rows import make_row

PER_TOKEN = 1000  # bytes of the full cache
SCORE = LOSS_KINDS["score"]


def rows_of(
    label: str, lengths: list[int], loss: float, budget: Any, held: Any, task: str = "t"
) -> list[Row]:
    """A row of each length, that holds `held(length)` bytes."""
    return [
        make_row(f"{label}/{task}/{index}", item_id=f"{task}/{index}", cluster_id=f"{task}/{index}")
        | {"variant": label, "policy": label.partition("@")[0], "benchmark": "b", "task": task}
        | {"budget_asked": json.dumps(budget), "context_tokens": length, "kept_ratio": 0.5}
        | {"kv_bytes": held(length), "full_kv_bytes": PER_TOKEN * length}
        | {"score": 1.0 - loss, "answer_nll": 0.5 + loss}
        for index, length in enumerate(lengths)
    ]


def full(lengths: list[int], task: str = "t") -> list[Row]:
    return rows_of("full", lengths, 0.0, None, lambda length: PER_TOKEN * length, task)


def fits_of(rows: list[Row], demand: Demand) -> dict[str, Fit]:
    (group,) = what_fits(rows, demand, SCORE).groups
    return {it.label: it for it in group.fits}


def test_a_share_grows_with_the_length_and_a_number_of_slots_does_not(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randrange(600, 5000) for _ in range(6)]
    rows = full(lengths)
    rows += rows_of("a@0.25", lengths, 0.1, {"kept_ratio": 0.25}, lambda it: PER_TOKEN * it // 4)
    rows += rows_of("b@512", lengths, 0.1, {"slots": 512}, lambda it: PER_TOKEN * 512)
    rows += rows_of("c@like:b@512", lengths, 0.1, {"like": "b@512"}, lambda it: PER_TOKEN * 512)
    rng.shuffle(rows)
    at = rng.randrange(2000, 100_000)
    found = fits_of(rows, Demand(10**12, at))
    assert found["full"].bytes_per_request == PER_TOKEN * at
    assert found["a@0.25"].bytes_per_request == pytest.approx(PER_TOKEN * at / 4, rel=1e-2)
    assert found["b@512"].bytes_per_request == found["c@like:b@512"].bytes_per_request == PER_TOKEN * 512
    # Below that number all tokens are kept.
    assert fits_of(rows, Demand(10**12, 100))["b@512"].bytes_per_request == PER_TOKEN * 100


def test_requests_are_those_that_fit_whole_beside_the_weights() -> None:
    rows = full([1000]) + rows_of("a@0.5", [1000], 0.1, {"kept_ratio": 0.5}, lambda it: PER_TOKEN * it // 2)
    found = fits_of(rows, Demand(10_000_000, 1000, 8))
    assert {label: it.num_fitting for label, it in found.items()} == {"full": 10, "a@0.5": 20}
    found = fits_of(rows, Demand(10_000_000, 1000, 8, weights_bytes=5_000_001))
    assert {label: (it.num_fitting, it.is_fitting) for label, it in found.items()} == {
        "full": (4, False),
        "a@0.5": (9, True),
    }
    assert list(found) == ["a@0.5", "full"]


def test_they_are_ranked_by_loss_and_what_failed_stands_behind() -> None:
    lengths = [1000] * 4
    rows = full(lengths)
    for label, loss in (("a@0.5", 0.3), ("b@0.5", 0.1), ("c@0.5", 0.0)):
        rows += rows_of(label, lengths, loss, {"kept_ratio": 0.5}, lambda it: 500 * it)
    rows[-1] |= {"status": FAILED, "score": None}
    found = fits_of(rows, Demand(10**9, 1000))
    assert list(found) == ["full", "b@0.5", "a@0.5", "c@0.5"]
    assert (found["c@0.5"].num_pairs, found["c@0.5"].num_unpaired) == (3, 1)
    loss = found["a@0.5"].losses["score"]
    assert loss is not None and loss.mean == pytest.approx(0.3)


def test_every_task_weighs_the_same_and_a_variant_needs_all_of_them() -> None:
    rows = full([1000] * 3, "t") + full([1000], "u")
    rows += rows_of("a@0.5", [1000] * 3, 0.2, {"kept_ratio": 0.5}, lambda it: 500 * it, "t")
    rows += rows_of("b@0.5", [1000] * 3, 0.1, {"kept_ratio": 0.5}, lambda it: 500 * it, "t")
    rows += rows_of("a@0.5", [1000], 0.6, {"kept_ratio": 0.5}, lambda it: 500 * it, "u")
    found = fits_of(rows, Demand(10**9, 1000))
    loss = found["a@0.5"].losses["score"]
    assert loss is not None and loss.mean == pytest.approx(0.4)
    assert found["b@0.5"].losses["score"] is None and found["b@0.5"].num_unpaired == 1
    assert list(found) == ["full", "a@0.5", "b@0.5"]


def test_lengths_that_were_not_measured_are_told() -> None:
    found = what_fits(full([1000, 2000]), Demand(10**9, 2200), SCORE)
    assert not found.is_far(found.groups[0])
    found = what_fits(full([1000, 2000]), Demand(10**9, 2300), SCORE)
    assert found.is_far(found.groups[0]) and not found.groups[0].is_measured_there


def test_step_times_are_those_of_the_batch_that_is_asked_for() -> None:
    rows = full([1000, 1000])
    for index, row in enumerate(rows):
        row |= {"cluster_id": "c", "execution": "isolated", "query_mode": "query_agnostic"}
        row |= {"new_tokens": 5 + index, "seconds": json.dumps({"decode_shared_s": 0.5})}
    step = fits_of(rows, Demand(10**9, 1000, 2))["full"].step
    assert step is not None and step.step_s == pytest.approx(0.1)
    assert fits_of(rows, Demand(10**9, 1000, 3))["full"].step is None
    assert fits_of(rows, Demand(10**9, 2000, 2))["full"].step is None


def test_without_bytes_nothing_is_said_to_fit() -> None:
    rows = full([1000]) + rows_of("a@0.5", [1000], 0.1, {"kept_ratio": 0.5}, lambda it: None)
    found = fits_of(rows, Demand(10**9, 1000))["a@0.5"]
    assert (found.bytes_per_request, found.num_fitting, found.is_fitting) == (None, None, False)


@pytest.mark.parametrize(
    ("demand", "said"),
    [
        (Demand(10, 0), "tokens must be a whole number"),
        (Demand(10, 1, 0), "requests must be"),
        (Demand(10, 1, 1, weights_bytes=10), "leaves nothing for a cache"),
    ],
)
def test_a_demand_that_is_none_is_refused(demand: Demand, said: str) -> None:
    with pytest.raises(ChoiceError, match=said):
        what_fits(full([1000]), demand, SCORE)


def test_a_number_that_no_row_has_is_refused() -> None:
    with pytest.raises(ChoiceError, match="have no kl; take --metric score or nll"):
        what_fits(full([1000]), Demand(10, 1), LOSS_KINDS["kl"])
    with pytest.raises(ChoiceError, match="no finished row of the full cache"):
        what_fits(rows_of("a@0.5", [10], math.nan, None, int), Demand(10, 1), SCORE)
