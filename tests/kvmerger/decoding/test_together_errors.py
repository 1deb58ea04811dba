"""An error of one prompt, or of a policy that acts, costs its own rows and none of the prompts beside it."""

from __future__ import annotations

from typing import Any

import pytest

from kvmerger.engine import Engine, fused
from kvmerger.generation import Generation, Prompt, Question, VariantFailure
from kvmerger.limits import Limits
from tests.fakes.tiny_models import tiny_model
from tests.kvmerger.decoding.test_acting_rows import OTHERS
from tests.kvmerger.decoding.test_together import (
    ACTING,
    CHOSEN,
    LENGTHS,
    NUM_LAYERS,
    engine_of,
    prompts_of,
    run_many,
)

# Prompts that answered apart because something is broken would pass every test of equality.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def test_an_error_of_one_prompt_costs_its_own_rows(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model(seed, num_layers=NUM_LAYERS), prompts_of(seed)
    bad = prompts[1] = Prompt(prompts[1].context_ids, (Question((1,), (), 5000),))
    expected = run_many(engine_of(model), prompts, CHOSEN)
    assert {(row.phase, row.error_type) for row in expected[1].values()} == {("engine", "InvalidPromptError")}
    assert all(isinstance(row, Generation) for key, row in expected[0].items() if key[0] != "impossible")
    with pytest.raises(ValueError, match="positions"):
        Engine(model.ours).run(bad, [])
    whole = fused.FusedRun.finish

    def finish(run: Any, *others: Any) -> Any:
        if run.prompt is prompts[2]:
            raise RuntimeError("this prompt is cursed")
        return whole(run, *others)

    monkeypatch.setattr(fused.FusedRun, "finish", finish)
    with pytest.warns(RuntimeWarning, match="2 prompts do not answer together: RuntimeError"):
        results = run_many(engine_of(model), prompts, CHOSEN)
    assert results[:2] == expected[:2]
    failures = {key: row for key, row in results[2].items() if isinstance(row, VariantFailure)}
    assert failures.keys() == results[2].keys()
    assert {row.message for row in failures.values()} == {"this prompt is cursed"}


def test_an_error_of_what_acts_costs_no_reference(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model(seed, num_layers=NUM_LAYERS), prompts_of(seed, LENGTHS[:2])
    policies, limits = [*OTHERS, *ACTING], Limits(max_rows=2 * 16)
    expected = run_many(engine_of(model, limits=limits), prompts, policies)

    def raises(*_: Any) -> Any:
        raise ValueError("no rule of ours")

    monkeypatch.setattr(fused.FusedRun, "answer_all", raises)
    found = run_many(engine_of(model, limits=limits), prompts, policies)
    for own, other in zip(expected, found, strict=True):
        changed = {label for label, question in own if own[label, question] != other[label, question]}
        assert changed == {"h2o", "like_h2o"}
