"""Memory that runs out parts prompts that decode together; every row is what it would have been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvmerger.decoding import together
from kvmerger.decoding.together import Together
from kvmerger.engine import compress, fused, fused_many, fused_members
from kvmerger.variants import FULL
from tests.fakes.tiny_models import tiny_model
from tests.kvmerger.decoding.test_together import (
    CHOSEN,
    LENGTHS,
    NUM_LAYERS,
    engine_of,
    loops,
    prompts_of,
    run_many,
)

# Prompts that answered apart because something is broken would pass every test of equality.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


class Failing:
    """The call numbered ``at`` of one function raises ``error``."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception, *at: int) -> None:
        self.num_calls = 0
        whole: Callable = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.num_calls += 1
            if self.num_calls in at:
                raise error
            return whole(*args, **kwargs)

        patch.setattr(owner, name, watched)


@loops
def test_memory_that_runs_out_parts_prompts_and_changes_no_row(
    with_graphs: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_model(seed, num_layers=NUM_LAYERS), prompts_of(seed)
    engine = engine_of(model, with_graphs)
    expected = run_many(engine, prompts, CHOSEN)
    lack = torch.OutOfMemoryError("does not fit")
    for owner, name, at in (
        (compress, "_compress", (1,)),
        (compress, "_compress", (7,)),
        (together, "extend", (3,)),
        (fused_members, "Together", (1, 2)),
        (fused_members, "Together", (1, 2, 3)),
        (fused_many.FusedRun, "finish", (2,)),
    ):
        with monkeypatch.context() as patch:
            if name == "extend" and with_graphs:
                continue
            prefills = Failing(patch, fused, "prefill", lack)
            failing = Failing(patch, owner, name, lack, *at)
            assert run_many(engine, prompts, CHOSEN) == expected, (name, at)
            assert failing.num_calls > max(at)
            assert prefills.num_calls == len(prompts), "no prompt is prefilled twice"


def test_what_fits_nowhere_costs_its_own_row(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model(seed, num_layers=NUM_LAYERS), prompts_of(seed)
    expected = run_many(engine_of(model), prompts, CHOSEN)
    whole = compress._compress

    def does_not_fit(prefilled: Any, variant: Any, *others: Any) -> Any:
        if variant.label == "ragged" and prefilled.layers[0].num_slots_H[0] == LENGTHS[2]:
            raise torch.OutOfMemoryError("ragged is too much")
        return whole(prefilled, variant, *others)

    monkeypatch.setattr(compress, "_compress", does_not_fit)
    results = run_many(engine_of(model), prompts, CHOSEN)
    assert results[:2] == expected[:2]
    changed = {
        label for label, question in results[2] if results[2][label, question] != expected[2][label, question]
    }
    assert changed == {"ragged", "like_ragged"}
    assert "does not fit" in results[2]["ragged", 0].message


def test_a_prefill_that_does_not_fit_beside_others_waits_for_them(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_model(seed, num_layers=NUM_LAYERS), prompts_of(seed)
    expected = run_many(engine_of(model), prompts, CHOSEN)
    for at in ((3,), (3, 4)):  # beside two others, and once more alone, before room was made
        with monkeypatch.context() as patch:
            Failing(patch, fused, "prefill", torch.OutOfMemoryError("full"), *at)
            assert run_many(engine_of(model), prompts, CHOSEN) == expected
    Failing(monkeypatch, fused, "prefill", torch.OutOfMemoryError("full"), 3, 4, 5)
    results = run_many(engine_of(model), prompts, CHOSEN)
    failed = results.pop(2)
    expected.pop(2)
    assert results == expected
    assert {(row.phase, row.error_type) for row in failed.values()} == {("engine", "OutOfMemoryError")}


@pytest.mark.parametrize("free_shares", [0.0, 13.0])
def test_planned_memory_parts_prompts_and_changes_no_row(
    free_shares: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_model(seed, num_layers=NUM_LAYERS), prompts_of(seed)
    expected = run_many(engine_of(model), prompts, CHOSEN)
    sizes: list[int] = []
    full_bytes = expected[0][FULL, 0].full_kv_bytes

    class Counted(Together):
        def __init__(self, model: Any, parties: Any, *others: Any) -> None:
            sizes.append(len(parties))
            super().__init__(model, parties, *others)

    monkeypatch.setattr(fused_members, "Together", Counted)
    monkeypatch.setattr(fused_many, "plannable_bytes", lambda device: int(free_shares * full_bytes))
    assert run_many(engine_of(model), prompts, CHOSEN) == expected
    assert max(sizes) < len(prompts) and (max(sizes) == 1) == (free_shares == 0.0)
