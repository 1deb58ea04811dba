"""Memory that runs out costs no row and changes none: groups are halved, and rows keep bucket and place."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvmerger.building import build_variant
from kvmerger.cache.slot_table import storage_bytes
from kvmerger.decoding import batch, own_slots
from kvmerger.decoding.step_graphs import StepGraphs
from kvmerger.engine import Engine, compress, fused
from kvmerger.generation import Generation, VariantFailure
from kvmerger.kernels import dispatch
from kvmerger.limits import Limits
from kvmerger.prefill.evidence import ATTENTION_MASS
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT, REFERENCE_LABELS, parse_policies
from tests.fakes.tiny_models import TinyModel, tiny_model
from tests.kvmerger.decoding.test_acting_rows import NUM_LAYERS, OTHERS, POLICIES, make_prompt
from tests.kvmerger.decoding.test_step_graphs import Calls

SEED = 5
CHOSEN = [
    *OTHERS,
    {"name": "random", "budget": {"like": "ragged"}, "label": "like_ragged"},
    {"name": "snapkv+nearest", "budget": 20, "window_size": 4, "label": "merged"},
    {"name": "snapkv", "budget": 10, "label": "impossible"},
    POLICIES[0],
    POLICIES[3],
    POLICIES[5],
]
Results = dict[tuple[str, int], Generation | VariantFailure]


def variants() -> list:
    return [build_variant(spec) for spec in parse_policies(CHOSEN)]


def run(model: TinyModel, prompt: Any, *, with_graphs: bool = False, **options: Any) -> Results:
    """Every row by label and question; each exactly once, without what a clock measured."""
    engine = Engine(model.ours, options.pop("limits", None))
    if with_graphs:
        engine._graphs = StepGraphs(model.ours, Calls())
    results = engine.run(prompt, variants(), seed=SEED, **options)
    by_key = {(result.label, result.question_index): result for result in results}
    assert len(by_key) == len(results), "a row came twice"
    labels = [variant.label for variant in variants()] + list(REFERENCE_LABELS)
    assert set(by_key) == {(label, question) for label in labels for question in (0, 1)}
    return {key: without_clock(result) for key, result in by_key.items()}


def without_clock(result: Generation | VariantFailure) -> Generation | VariantFailure:
    if isinstance(result, VariantFailure):
        return replace(result, traceback="")
    return replace(result, seconds={})


class FailsOnce:
    """Out of memory at the call numbered ``at``, whichever of the watched functions it is."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.num_calls = 0
        self._at = at
        for owner, name in ((compress, "_compress"), (batch, "extend"), (own_slots.OwnSlots, "_copy_prefix")):
            patch.setattr(owner, name, self._watched(getattr(owner, name)))

    def _watched(self, function: Callable) -> Callable:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.num_calls += 1
            if self.num_calls == self._at:
                raise torch.OutOfMemoryError(f"call {self._at} did not fit")
            return function(*args, **kwargs)

        return watched


@pytest.mark.parametrize(
    ("with_graphs", "dtype"),
    [(False, torch.bfloat16), (True, torch.float32)],
    ids=["eager, bf16", "recorded, fp32"],
)
def test_wherever_memory_runs_out_every_row_is_what_it_would_have_been(
    dtype: torch.dtype, with_graphs: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = tiny_model(seed, dtype, num_layers=NUM_LAYERS), make_prompt(seed)
    with monkeypatch.context() as patch:
        counted = FailsOnce(patch, at=0)
        expected = run(model, prompt, with_graphs=with_graphs)
    rng = random.Random(seed)
    num_aa_calls = 30  # towards the end it is the A/A row's turn, which has nobody to be parted from
    for at in (1, *(rng.randrange(2, counted.num_calls - num_aa_calls) for _ in range(3))):
        with monkeypatch.context() as patch:
            failing = FailsOnce(patch, at)
            assert run(model, prompt, with_graphs=with_graphs) == expected, at
            assert failing.num_calls > at


class Cramped(batch.Batch):
    """A batch that fits only if its rows' prefixes take at most `limit_bytes`, each counted once."""

    limit_bytes = 0
    num_refused = 0

    def __init__(self, model: Any, prompt: Any, rows: Any, bucket: int, graphs: Any = None) -> None:
        held = storage_bytes(
            tensor for row in rows.values() for layer in row.prefix for tensor in layer.tensors()
        )
        if held > self.limit_bytes:
            type(self).num_refused += 1
            raise torch.OutOfMemoryError(f"{held} bytes do not fit into {self.limit_bytes}")
        super().__init__(model, prompt, rows, bucket, graphs)


def cramped(patch: pytest.MonkeyPatch, limit_bytes: int) -> type[Cramped]:
    kind = type("Cramped", (Cramped,), {"limit_bytes": limit_bytes, "num_refused": 0})
    patch.setattr(fused, "Batch", kind)
    return kind


@pytest.mark.parametrize(("max_rows", "share"), [(64, 1.55), (8, 1.8)])
def test_what_does_not_fit_together_answers_apart(
    max_rows: int, share: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    limits = Limits(max_rows=max_rows)
    expected = run(model, prompt, limits=limits)
    full_bytes = expected[FULL, 0].full_kv_bytes
    kind = cramped(monkeypatch, int(full_bytes * share))
    assert run(model, prompt, limits=limits) == expected
    assert kind.num_refused > 0


def test_what_does_not_fit_even_alone_is_its_own_failed_row(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    expected = run(model, prompt)
    full_bytes = expected[FULL, 0].full_kv_bytes
    limit_bytes = full_bytes + full_bytes * 45 // 100
    cramped(monkeypatch, limit_bytes)
    results = run(model, prompt)
    assert {label for label, _ in results if results[label, 0] != expected[label, 0]} == {
        label
        for label, _ in expected
        if isinstance(expected[label, 0], Generation)
        and label not in REFERENCE_LABELS
        and full_bytes + expected[label, 0].kv_bytes > limit_bytes
    }
    failure = results["knorm@0.5", 1]
    assert isinstance(failure, VariantFailure)
    assert (failure.phase, failure.error_type) == ("decode", "OutOfMemoryError")
    assert "'knorm@0.5' does not fit" in failure.message and "smaller budget" in failure.message


def test_references_remain_when_no_variant_fits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    expected = run(model, prompt)
    cramped(monkeypatch, expected[FULL, 0].full_kv_bytes)
    results = run(model, prompt)
    for label, question in results:
        is_same = results[label, question] == expected[label, question]
        assert is_same == (label in (FULL, NO_CONTEXT, FULL_AA, "impossible")), label


def test_a_full_row_that_does_not_fit_is_an_error(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    cramped(monkeypatch, 1)
    with pytest.raises(torch.OutOfMemoryError, match="do not fit into 1"):
        run(model, prompt)


@pytest.mark.parametrize("lasts", [False, True], ids=["once", "always"])
def test_evidence_that_does_not_fit_is_tried_again_and_then_costs_those_that_ask(
    lasts: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    expected = run(model, prompt)
    whole, calls = dispatch.attention_mass, [0]

    def mass(*args: Any) -> Any:
        calls[0] += 1
        if lasts or calls[0] == 2:
            raise torch.OutOfMemoryError("the mass is too much")
        return whole(*args)

    monkeypatch.setattr(dispatch, "attention_mass", mass)
    results = run(model, prompt)
    changed = {label for label, question in results if results[label, question] != expected[label, question]}
    asking = {variant.label for variant in variants() if ATTENTION_MASS in variant.policy.needs()}
    assert asking and changed == (asking if lasts else set())
    assert calls[0] == (1 if lasts else 2) + NUM_LAYERS
    for label in changed:
        assert results[label, 0].error_type == "EvidenceError"
        assert "Need(name='attention_mass', params=()) does not fit" in results[label, 0].message


@pytest.mark.parametrize("is_many", [False, True], ids=["run", "run_many"])
def test_a_prefill_may_have_the_memory_of_earlier_batches(
    is_many: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    engine, graphs = Engine(model.ours), StepGraphs(model.ours, Calls())
    engine._graphs = graphs

    def rows() -> list[Generation | VariantFailure]:
        if is_many:
            return engine.run_many([prompt], variants(), seed=SEED)[0]
        return list(engine.run(prompt, variants(), seed=SEED))

    expected = [without_clock(row) for row in rows()]
    whole, refused = fused.prefill, []

    def fits_only_then(*args: Any, **options: Any) -> Any:
        if graphs._arena is not None:
            refused.append(args)
            raise torch.OutOfMemoryError("the last tails are in the way")
        return whole(*args, **options)

    monkeypatch.setattr(fused, "prefill", fits_only_then)
    assert [without_clock(row) for row in rows()] == expected
    assert len(refused) == 1


def test_isolated_rows_fail_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    expected = run(model, prompt, execution="isolated")
    whole = compress._compress

    def does_not_fit(prefilled: Any, variant: Any, *others: Any) -> Any:
        if variant.label == "ragged":
            raise torch.OutOfMemoryError("ragged is too much")
        return whole(prefilled, variant, *others)

    monkeypatch.setattr(compress, "_compress", does_not_fit)
    results = run(model, prompt, execution="isolated")
    changed = {label for label, question in results if results[label, question] != expected[label, question]}
    assert changed == {"ragged", "like_ragged"}
    assert "does not fit" in results["ragged", 0].message
    assert results["like_ragged", 0].error_type == "BudgetError"


def test_planned_groups_change_no_row(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    expected = run(model, prompt)
    batches: list[int] = []

    class Counted(batch.Batch):
        def __init__(self, *args: Any) -> None:
            batches.append(len(args[2]))
            super().__init__(*args)

    monkeypatch.setattr(fused, "Batch", Counted)
    for free_bytes in (0, 3 * expected[FULL, 0].full_kv_bytes):
        batches.clear()
        monkeypatch.setattr(fused, "plannable_bytes", lambda device, free_bytes=free_bytes: free_bytes)
        assert run(model, prompt) == expected
        assert len(batches) > 2
