"""A recording that fails costs its batch some time and no row; what fails again at once is given up, and says so."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kvmerger.decoding.batch import Batch
from kvmerger.decoding.step_graphs import Refusals, StepGraphs
from kvmerger.generation import Prompt
from tests.fakes.tiny_models import TinyModel, tiny_model
from tests.kvmerger.decoding.test_acting_rows import POLICIES
from tests.kvmerger.decoding.test_step_graphs import Calls, make_prompt, make_rows

BUCKET = 4
policies_of_rows = pytest.mark.parametrize("policies", [[], POLICIES[:2]], ids=["plain", "acting"])


def make_small(seed: int) -> tuple[TinyModel, Prompt]:
    """One layer and one question, of whose answer five tokens are read."""
    prompt = make_prompt(random.Random(seed), 48)
    return tiny_model(seed, num_layers=1), replace(
        prompt, questions=(replace(prompt.questions[0], max_new_tokens=6),)
    )


class Failing(Calls):
    """Fails whenever the next of ``outcomes`` says so, the step half done; as a driver does that has no memory left."""

    def __init__(self, outcomes: str) -> None:
        super().__init__()
        self.outcomes = list(outcomes)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        repeat = super().record(step)
        match self.outcomes.pop(0) if self.outcomes else "ok":
            case "x":
                raise RuntimeError("CUDA error: out of memory")
            case "m":
                raise torch.OutOfMemoryError("no room for a record")
        return repeat


@policies_of_rows
@pytest.mark.parametrize("outcomes", ["x.", "x.x.x.", "xm.x.", "mx.m"])
def test_a_failure_that_passes_costs_no_more_than_its_batch(
    outcomes: str, policies: list[dict], seed: int
) -> None:
    model, prompt = make_small(seed)
    rows = make_rows(model, prompt, policies)
    expected = Batch(model.ours, prompt, rows, BUCKET).decode()
    recorder = Failing(outcomes)
    graphs = StepGraphs(model.ours, recorder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while recorder.outcomes:
            is_recorded, before = recorder.outcomes[0] == ".", recorder.num_repeats
            assert Batch(model.ours, prompt, rows, BUCKET, graphs).decode() == expected
            assert (recorder.num_repeats > before) == is_recorded
            if is_recorded:
                graphs.forget_recorded()


@policies_of_rows
def test_what_fails_twice_in_a_row_is_given_up_with_a_warning(policies: list[dict], seed: int) -> None:
    model, prompt = make_small(seed)
    rows = make_rows(model, prompt, policies)
    expected = Batch(model.ours, prompt, rows, BUCKET).decode()
    for outcomes in ("xx.", "x.xx.", "xmx."):
        recorder = Failing(outcomes)
        graphs = StepGraphs(model.ours, recorder)
        while len(recorder.outcomes) > 2:
            assert Batch(model.ours, prompt, rows, BUCKET, graphs).decode() == expected
            graphs.forget_recorded()
        with pytest.warns(RuntimeWarning, match="without CUDA graphs.*CUDA error: out of memory"):
            assert Batch(model.ours, prompt, rows, BUCKET, graphs).decode() == expected
        assert Batch(model.ours, prompt, rows, BUCKET, graphs).decode() == expected
        assert recorder.outcomes == ["."], "nobody tries again"


def test_what_one_has_given_up_no_other_tries_that_shares_its_refusals(seed: int) -> None:
    """As the graphs of isolated rows do, of which each serves one batch."""
    model, prompt = make_small(seed)
    rows, refusals = make_rows(model, prompt, []), Refusals()
    expected = Batch(model.ours, prompt, rows, BUCKET).decode()

    def decode(recorder: Failing) -> None:
        graphs = StepGraphs(model.ours, recorder, refusals=refusals)
        assert Batch(model.ours, prompt, rows, BUCKET, graphs).decode() == expected

    decode(Failing("x"))
    with pytest.warns(RuntimeWarning, match="without CUDA graphs"):
        decode(Failing("x"))
    third = Failing("x")
    decode(third)
    assert third.outcomes == ["x"]


def test_a_failure_lets_go_of_all_that_was_recorded(seed: int) -> None:
    model, prompt = make_small(seed)
    graphs = StepGraphs(model.ours, Failing("..x"))
    plain, acting = (make_rows(model, prompt, policies) for policies in ([], POLICIES[:2]))
    for rows in (plain, acting):
        Batch(model.ours, prompt, rows, BUCKET, graphs).decode()
    assert graphs._by_key and graphs._last_acting is not None
    Batch(model.ours, prompt, acting, BUCKET, graphs).decode()
    assert not graphs._by_key and graphs._last_acting is None


def test_a_lost_device_is_an_error_of_the_batch(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = make_small(seed)
    batch = Batch(
        model.ours, prompt, make_rows(model, prompt, []), BUCKET, StepGraphs(model.ours, Failing("x"))
    )

    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Batch, "step", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        batch.decode()
