"""Variants that are stored in fewer bits: what they hold, what they answer, and that neighbours change nothing of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kvmerger.building import build_variant
from kvmerger.cache.forms import registry
from kvmerger.cache.packed_layer import PackedLayer
from kvmerger.cache.slot_table import storage_addresses
from kvmerger.decoding.batch import Batch, Row
from kvmerger.engine import Engine
from kvmerger.engine.budgets import shape_of
from kvmerger.engine.compress import compress_all
from kvmerger.engine.fused import needs_of
from kvmerger.engine.groups import expected_bytes
from kvmerger.generation import Generation
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import FULL, parse_policies
from tests.fakes.tiny_models import tiny_model
from tests.kvmerger.engine.test_engine import DTYPES, make_prompt

FORMS = [name for name in registry.names() if "v" not in name[:3] or name == "k8v4"]
ENTRIES = [
    "fp8",
    "kivi4",
    {"name": "snapkv+int8", "budget": 0.5, "window_size": 16},
    {"name": "keydiff+keepkv+kivi2", "budget": 0.6},
    {"name": "snapkv+adakv+int4", "budget": {"bytes": 0.1}, "window_size": 16, "label": "ragged"},
    {"name": "h2o+k8v4", "budget": {"bytes": {"like": "ragged"}}, "label": "same_bytes"},
    {"name": "knorm", "budget": {"bytes": {"like": "ragged"}}, "label": "plain_same_bytes"},
    {"name": "streaming_llm+nvfp4+streaming_llm_decode", "budget": 0.3, "label": "acts"},
]


def variants(*entries: str | dict):
    return [build_variant(spec) for spec in parse_policies(list(entries or ENTRIES))]


def run(seed: int, *entries: str | dict, execution: str = "fused", **options) -> dict[str, Generation]:
    prompt = make_prompt(seed, 300, "query_agnostic", num_questions=1)
    results = Engine(tiny_model(seed, **options).ours).run(prompt, variants(*entries), execution=execution)
    return {result.label: result for result in results}


def test_rows_say_what_they_hold(seed: int) -> None:
    by_label = run(seed)
    assert all(isinstance(result, Generation) for result in by_label.values()), by_label
    full = by_label[FULL]
    assert (full.form, full.bits_k, full.position_bytes) == ("plain", 32.0, 5 * 2 * 300 * 4)
    assert full.read_bytes == full.full_read_bytes == full.kv_bytes - full.position_bytes
    fp8 = by_label["fp8"]
    assert (fp8.form, fp8.bits_k, fp8.bits_v) == ("fp8", 8.0, 8.0)
    assert fp8.read_bytes * 4 == full.read_bytes  # the tiny model's numbers take four bytes
    assert "num_saturated" in fp8.counters and not fp8.is_degenerate
    assert by_label["keydiff+keepkv@0.6+kivi2"].form == "kivi2"
    for label, form in (("ragged", "int4"), ("same_bytes", "k8v4")):
        layer = registry.get(form)()
        slots_LH = by_label[label].slots_LH
        assert by_label[label].read_bytes == sum(layer.num_bytes(slots_H, 16) for slots_H in slots_LH)


def test_a_budget_of_bytes_is_met_and_nearly_used(seed: int) -> None:
    by_label = run(seed)
    full_bytes = by_label[FULL].read_bytes
    # One slot in every head and layer, with its scales: what may be left over.
    assert 0 <= full_bytes * 0.1 - by_label["ragged"].read_bytes < 5 * 2 * 24
    for label, slot_bytes in (("same_bytes", 8 + 16 + 8), ("plain_same_bytes", 128)):
        left_over = by_label["ragged"].read_bytes - by_label[label].read_bytes
        assert 0 <= left_over < 5 * 2 * slot_bytes, label
    assert max(map(max, by_label["ragged"].slots_LH)) > max(map(max, by_label["plain_same_bytes"].slots_LH))


def test_heads_that_share_unevenly_exceed_no_budget_of_bytes(seed: int) -> None:
    model, prompt = tiny_model(seed), make_prompt(seed, 300, "query_agnostic", num_questions=1)
    policies = ("snapkv+adakv", "pyramidkv+adakv", "layer_defensivekv", "pyramidkv")
    built = variants(
        *(
            {"name": f"{policy}+{form}", "budget": {"bytes": 0.08}, "window_size": 8, "label": policy + form}
            for policy in policies
            for form in ("kivi3", "kivi2")
        ),
        {"name": "knorm+adakv+kivi4", "budget": {"bytes": {"like": "pyramidkvkivi3"}}, "label": "like"},
    )
    prefilled = prefill(model.ours, prompt.context_ids, needs_of(built))
    compression = compress_all(prefilled, built)
    assert not compression.failed
    asked = compression.kept[FULL].num_bytes * 0.08
    a_group, a_slot = 16 * 4, 20  # of a head, the latter with its own scales
    for label, kept in compression.kept.items():
        if label != FULL:
            limit = compression.kept["pyramidkvkivi3"].num_bytes if label == "like" else asked
            assert 0 <= limit - kept.num_bytes < 5 * 2 * (a_group + a_slot), label
            assert len({count for slots_H in kept.slots_LH for count in slots_H}) > 1


def test_a_form_that_holds_all_slots_within_its_budget_is_told(seed: int) -> None:
    row = run(seed, {"name": "knorm+int4", "budget": {"bytes": 0.9}})["knorm@bytes:0.9+int4"]
    assert row.degenerate_reason == "kept every slot: its form holds all of them within the budget"


def test_isolated_runs_agree_with_fused_ones(seed: int) -> None:
    fused, isolated = (run(seed, execution=execution) for execution in ("fused", "isolated"))
    assert fused.keys() == isolated.keys()
    for label, row in fused.items():
        other = isolated[label]
        assert (row.slots_LH, row.kv_bytes, row.read_bytes) == (
            other.slots_LH,
            other.kv_bytes,
            other.read_bytes,
        )
        assert row.kl_mean == pytest.approx(other.kl_mean, abs=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_decodes_to_the_same_bits_whatever_forms_its_neighbours_have(dtype, seed: int) -> None:
    model, prompt = tiny_model(seed, dtype), make_prompt(seed, 300, "query_agnostic", num_questions=1)
    built = variants(*ENTRIES[:7])
    prefilled = prefill(model.ours, prompt.context_ids, needs_of(built))
    compression = compress_all(prefilled, built)
    assert not compression.failed
    rows = [Row(label, 0, done.prefix) for label, done in compression.done.items()]
    forced = dict.fromkeys(range(len(rows)), (3, 1, 4, 1, 5))
    together = Batch(model.ours, prompt, dict(enumerate(rows)), bucket=8)
    hidden = together.force(forced, 5)
    answers = together.decode()
    for index, row in enumerate(rows):
        alone = Batch(model.ours, prompt, {index: row}, bucket=8)
        assert torch.equal(alone.force({index: forced[index]}, 5)[index], hidden[index])
        assert alone.decode()[index] == answers[index]


def test_a_packed_row_attends_to_what_its_codes_stand_for(seed: int) -> None:
    model, prompt = tiny_model(seed), make_prompt(seed, 300, "query_aware", num_questions=1)
    built = variants("int4", "kivi2")
    prefilled = prefill(model.ours, prompt.context_ids, frozenset())
    done = compress_all(prefilled, built).done
    for label in ("int4", "kivi2"):
        decoded = tuple(layer.plain() for layer in done[label].prefix)
        packed_row, plain_row = Row(label, 0, done[label].prefix), Row(label, 0, decoded)
        batch = Batch(model.ours, prompt, {0: packed_row, 1: plain_row}, bucket=4)
        hidden = batch.force({0: (5, 6, 7), 1: (5, 6, 7)}, 3)
        torch.testing.assert_close(hidden[0], hidden[1], atol=1e-4, rtol=1e-4)


def test_packed_layers_own_all_they_hold_and_the_full_row_stays_as_it_was(seed: int) -> None:
    model, prompt = tiny_model(seed), make_prompt(seed, 300, "query_aware", num_questions=1)
    built = variants()
    prefilled = prefill(model.ours, prompt.context_ids, needs_of(built))
    before = [layer.k_SD.clone() for layer in prefilled.layers]
    compression = compress_all(prefilled, built)
    full = storage_addresses(tensor for layer in prefilled.layers for tensor in layer.tensors())
    expected = expected_bytes(built, prompt, shape_of(prefilled), 1)
    for label, done in compression.done.items():
        if label == FULL:
            continue
        held = [tensor for layer in done.prefix for tensor in layer.tensors()]
        assert not storage_addresses(held) & full, label
        assert label == "plain_same_bytes" or all(isinstance(layer, PackedLayer) for layer in done.prefix)
        for layer in done.prefix:
            layer.check_integrity()
        if label != "acts":
            assert done.nbytes <= expected[label] <= 1.4 * done.nbytes, (
                label
            )  # positions weigh much beside such small heads
    assert all(torch.equal(layer.k_SD, other) for layer, other in zip(prefilled.layers, before, strict=True))


def test_what_acts_while_answering_starts_from_what_was_stored(seed: int) -> None:
    by_label = run(seed, ENTRIES[-1], {"name": "streaming_llm+streaming_llm_decode", "budget": 0.3})
    packed, plain = by_label["acts"], by_label["streaming_llm+streaming_llm_decode@0.3"]
    assert packed.counters["num_decode_evicted"] == plain.counters["num_decode_evicted"] > 0
    assert packed.kv_bytes < plain.kv_bytes
    # Slots of its own are plain, and told as what is held beyond the prefix.
    assert packed.tail_bytes > plain.kv_bytes - packed.kv_bytes


@dataclass(frozen=True)
class Breaks(registry.get("int8")().__class__):
    """Raises where it is asked to store."""

    bits_k: int = 8
    bits_v: int = 8

    def encode(self, k_SD, v_SD, num_slots_H):
        raise RuntimeError("no codes today")


def test_a_form_that_fails_costs_its_own_row(seed: int) -> None:
    by_label = run(seed, f"knorm@0.5+{__name__}:Breaks", "int8")
    assert isinstance(by_label["int8"], Generation)
    failed = next(result for label, result in by_label.items() if "Breaks" in label)
    assert not isinstance(failed, Generation)
    assert (failed.phase, failed.message) == ("compress", "no codes today")


@dataclass(frozen=True)
class HasNoBits(Breaks):
    """Is asked for what its rows would say only once they have answered."""

    def bits(self, head_dim):
        raise LookupError("nobody knows")


def test_a_form_that_cannot_say_what_it_holds_fails_before_it_answers(seed: int) -> None:
    model, prompt = tiny_model(seed), make_prompt(seed, 40, "query_agnostic", num_questions=1)
    built = variants(f"knorm@0.5+{__name__}:HasNoBits", "int8")
    compression = compress_all(prefill(model.ours, prompt.context_ids, needs_of(built)), built)
    assert "int8" in compression.done
    (failure,) = compression.failed.values()
    assert failure.message == (
        f"{__name__}:HasNoBits(bits_k=8,bits_v=8,rotate=False): its bits({model.ours.info.head_dim}) "
        f"raised LookupError: nobody knows"
    )


@pytest.mark.parametrize("form", FORMS)
def test_more_bits_are_nearer_to_the_full_cache(form: str, seed: int) -> None:
    rows = run(seed, form, "kivi2" if form != "kivi2" else "k2v4")
    assert rows[form].kl_mean < 5
    if form in ("int8", "fp8_scaled"):
        assert rows[form].kl_mean < rows["kivi2"].kl_mean
