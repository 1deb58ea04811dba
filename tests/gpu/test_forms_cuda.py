"""Variants in forms on CUDA: real bytes, equal bits beside whatever neighbours, recorded steps, and strangers' forms."""

from __future__ import annotations

import gc

import pytest
import torch

from kvmerger.building import build_variant
from kvmerger.cache.forms import registry
from kvmerger.decoding.batch import Batch, Row
from kvmerger.decoding.step_graphs import graphs_for
from kvmerger.engine import Engine
from kvmerger.engine.compress import compress_all
from kvmerger.engine.fused import needs_of
from kvmerger.generation import Generation
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import FULL, parse_policies
from tests.gpu.test_engine_cuda import ALLOCATOR_TOLERANCE, on_cuda
from tests.kvmerger.engine.test_engine import make_prompt

pytestmark = pytest.mark.gpu
ENTRIES = [
    *registry.names(),
    {"name": "snapkv+adakv+int4", "budget": 0.4, "window_size": 16, "label": "ragged"},
    {"name": "keydiff+keepkv+kivi4", "budget": 0.6, "label": "merged"},
    {"name": "h2o+kivi2", "budget": 0.3},
    {"name": "knorm", "budget": 0.5},
]
STRANGER = "tests.contracts.test_stored_forms:Halves"


def variants(*entries: str | dict):
    return [build_variant(spec) for spec in parse_policies(list(entries or ENTRIES))]


@pytest.mark.parametrize(
    "name", ["fp8", "int4", "int4_rotated", "nvfp4", "kivi4", "kivi3", "turboquant_3bit_nc"]
)
def test_reported_bytes_are_the_allocators(name: str, seed: int) -> None:
    model = on_cuda(seed, torch.bfloat16)
    prompt = make_prompt(seed, 3900, "query_aware", num_questions=1)
    (variant,) = variants(name)
    prefilled = prefill(model.ours, prompt.context_ids, frozenset())
    compress_all(prefilled, [variant])  # the first one also takes what kernels need
    gc.collect()
    torch.cuda.synchronize()
    before_bytes = torch.cuda.memory_allocated()
    done = compress_all(prefilled, [variant]).done[name]
    gc.collect()
    torch.cuda.synchronize()
    held_bytes = torch.cuda.memory_allocated() - before_bytes
    assert done.nbytes == pytest.approx(held_bytes, rel=ALLOCATOR_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_row_alone_has_the_bits_it_has_in_the_batch_and_in_recorded_steps(
    dtype: torch.dtype, seed: int
) -> None:
    model, prompt = on_cuda(seed, dtype), make_prompt(seed, 1500, "query_agnostic", num_questions=1)
    built = variants()
    prefilled = prefill(model.ours, prompt.context_ids, needs_of(built))
    compression = compress_all(prefilled, built)
    assert not compression.failed
    rows = {index: Row(label, 0, done.prefix) for index, (label, done) in enumerate(compression.done.items())}
    graphs = graphs_for(model.ours)
    assert graphs is not None
    together = Batch(model.ours, prompt, rows, 32, graphs)
    answers = together.decode()
    assert graphs.num_recorded == 1
    forced = answers[0].token_ids
    hidden = together.force(dict.fromkeys(rows, forced), len(forced))
    for index, row in rows.items():
        alone = Batch(model.ours, prompt, {index: row}, 32)
        assert alone.decode()[index] == answers[index], row.label
        assert torch.equal(alone.force({index: forced}, len(forced))[index], hidden[index]), row.label


def test_a_packed_row_is_near_to_its_own_decoded_numbers(seed: int) -> None:
    model, prompt = on_cuda(seed, torch.float32), make_prompt(seed, 1500, "query_agnostic", num_questions=1)
    built = variants()
    prefilled = prefill(model.ours, prompt.context_ids, needs_of(built))
    for label, done in compress_all(prefilled, built).done.items():
        decoded = tuple(layer.plain() for layer in done.prefix)
        batch = Batch(model.ours, prompt, {0: Row(label, 0, done.prefix), 1: Row(label, 0, decoded)}, 4)
        hidden = batch.force({0: (5, 6, 7), 1: (5, 6, 7)}, 3)
        torch.testing.assert_close(hidden[0], hidden[1], atol=2e-3, rtol=2e-3, msg=label)


def test_a_strangers_form_is_decoded_to_be_read_and_the_other_rows_are_recorded(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = on_cuda(seed, torch.bfloat16), make_prompt(seed, 900, "query_agnostic", num_questions=1)
    graphs = graphs_for(model.ours)
    assert graphs is not None
    decode, batches = graphs.run, set()

    def noted(cache, acting, progress):
        said = decode(cache, acting, progress)
        batches.add((cache.has_kernels, "eager" if said is None else "recorded"))
        return said

    monkeypatch.setattr(graphs, "run", noted)
    monkeypatch.setattr("kvmerger.engine.engine.graphs_for", lambda *_: graphs)
    engine = Engine(model.ours)
    results = {it.label: it for it in engine.run(prompt, variants(f"full+{STRANGER}", "int8"))}
    stranger = results["Halves"]
    assert isinstance(stranger, Generation)
    assert stranger.kl_mean < 0.05
    assert stranger.read_bytes == results[FULL].read_bytes
    assert stranger.form.startswith("tests.contracts")
    assert batches == {(False, "eager"), (True, "recorded")}
