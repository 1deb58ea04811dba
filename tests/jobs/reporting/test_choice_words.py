"""The sentences say what the results say, whichever answer there is."""

import json
import random

import pytest

from jobs.analysis.choosing.certificates import Certificates, Contract, certify
from jobs.analysis.choosing.fits import Demand, what_fits
from jobs.analysis.choosing.losses import LOSS_KINDS
from jobs.reporting.choice_json import certificates_as_json, fits_as_json
from jobs.reporting.choice_words import certificate_answer, certificate_notes, fit_answer, fit_notes
from jobs.results.schema import Row
from tests.fakes.rows import make_sweep_rows


def test_measured_steps_say_where_and_bytes_in_what(seed: int) -> None:
    rows = [
        row
        | {
            "execution": "isolated",
            "new_tokens": 3,
            "seconds": '{"decode_shared_s": 1.0}',
            "dtype": "torch.bfloat16",
        }
        | {"device": "cuda", "device_name": "NVIDIA H200"}
        for row in sweep(seed, 3, 1.0)
    ]
    found = what_fits(rows, Demand(10**9, 4000, 1), LOSS_KINDS["score"])
    notes = "; ".join(fit_notes(found, found.groups[0]))
    assert "measured with 1 request, the variant alone on cuda (NVIDIA H200)" in notes
    assert "to hold in bfloat16, scales" in notes and "not measured" not in notes


def sweep(seed: int, num_items: int, score: float) -> list[Row]:
    """One policy, of that score everywhere; the full cache has 1 and no context 0."""
    rows = make_sweep_rows(random.Random(seed), {"snapkv@0.5": 0.5}, ["b/t"], num_items)
    scores = {"full": 1.0, "full_aa": 1.0, "snapkv@0.5": score}
    return [row | {"score": scores.get(row["variant"], 0.0)} for row in rows]


def answer_of(found: Certificates) -> str:
    (group,) = found.groups
    return certificate_answer(found, group)


def test_each_kind_of_answer_has_its_sentence(seed: int) -> None:
    assert answer_of(certify(sweep(seed, 60, 1.0), Contract())).startswith(
        "cheapest certified: snapkv@0.5, 50.0%"
    )
    assert answer_of(certify(sweep(seed, 60, 0.5), Contract())) == "nothing is certified: keep the full cache"
    few = answer_of(certify(sweep(seed, 58, 1.0), Contract()))
    assert "58 contexts are too few" in few and few.endswith("59 are needed for 1 sequence of budgets")
    blind = [row | {"score": 1.0} for row in sweep(seed, 60, 1.0)]
    assert "do not test the cache" in answer_of(certify(blind, Contract()))
    cut = [row | {"status": "truncated"} for row in sweep(seed, 60, 1.0)]
    found = certify(cut, Contract())
    assert "no context can take part (60 contexts where a prompt was cut)" in answer_of(found)
    assert any("--keep-cut" in note for note in certificate_notes(found.groups[0]))


def test_sequences_that_were_not_stopped_are_told(seed: int) -> None:
    def notes(score: float) -> str:
        (group,) = certify(sweep(seed, 60, score), Contract()).groups
        return "; ".join(certificate_notes(group))

    assert "no smaller budget was tried, and one may do: snapkv" in notes(1.0) and "smaller" not in notes(0.5)
    assert "a variant may lose at most 0 of them" in notes(1.0)


def test_where_the_full_cache_finds_nothing_that_is_told(seed: int) -> None:
    rows = sweep(seed, 60, 1.0)
    for row in rows:
        if row["item_id"].endswith("3"):
            row["score"] = 0.0
    (group,) = certify(rows, Contract()).groups
    assert any(note.startswith("on 6 of them the full cache itself") for note in certificate_notes(group))


def test_what_fits_says_when_the_full_cache_does(seed: int) -> None:
    rows = sweep(seed, 5, 0.9)
    for memory, said in (
        (10**9, "the full cache fits"),
        (3 * 2**20, "of what fits"),
        (2**20, "nothing fits"),
    ):
        found = what_fits(rows, Demand(memory, 4000), LOSS_KINDS["score"])
        assert fit_answer(found, found.groups[0]).startswith(said)
        assert any("not measured (rows of" in note for note in fit_notes(found, found.groups[0]))


@pytest.mark.parametrize("num_items", [5, 60])
def test_scripts_get_every_level_and_the_sentence(num_items: int, seed: int) -> None:
    rows = sweep(seed, num_items, 1.0)
    found = certify(rows, Contract())
    (group,) = json.loads(json.dumps(certificates_as_json(found)))["groups"]
    assert group["answer"] == answer_of(found) and group["is_too_few"] == (num_items == 5)
    (level,) = group["sequences"][0]["levels"]
    assert level["variant"] == "snapkv@0.5" and level["is_certified"] == (num_items == 60)
    fits = json.loads(json.dumps(fits_as_json(what_fits(rows, Demand(10**9, 4000), LOSS_KINDS["kl"]))))
    losses = {it["variant"]: it["losses"]["kl"] for it in fits["groups"][0]["variants"]}
    assert losses["snapkv@0.5"]["mean"] > losses["full"]["mean"] == 0.0
    assert losses["snapkv@0.5"]["low"] is None
