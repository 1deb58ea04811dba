"""Rows of a table of bits: every layer as its own pair alone would store it, their bytes, their form's name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvmerger.building import build_variant
from kvmerger.cache.packed_layer import PackedLayer
from kvmerger.engine import Engine
from kvmerger.engine.compress import compress_all
from kvmerger.engine.fused import needs_of
from kvmerger.generation import Generation
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import FULL, parse_policies
from tests.fakes.settings import table_of_pairs
from tests.fakes.tiny_models import tiny_model
from tests.kvmerger.engine.test_engine import make_prompt

PAIRS = [(8, 4), (2, 8), (4, 4), (8, 2), (2, 2)]
NAMES = ["k8v4", "k2v8", "int4", "k8v2", "kivi2"]


def entry(name: str, pairs: list[tuple[int, int]] | None = None, **others: object) -> dict:
    return {"name": name, "table": table_of_pairs(pairs or PAIRS), **others}


def variants(*entries: str | dict) -> list:
    return [build_variant(spec) for spec in parse_policies(list(entries))]


def test_a_layer_is_held_as_in_the_form_of_its_pair(seed: int) -> None:
    model = tiny_model(seed).ours
    asked = variants(entry("kvtuner"), *NAMES[:4], entry("knorm@0.5+kvtuner"), "knorm@0.5+k8v2")
    prompt = make_prompt(seed, 90, "query_agnostic", num_questions=1)
    prefilled = prefill(model, prompt.context_ids, needs_of(asked))
    done = compress_all(prefilled, asked).done
    for index, name in enumerate(NAMES[:4]):
        ours, theirs = done["kvtuner"].prefix[index], done[name].prefix[index]
        assert isinstance(ours, PackedLayer) and isinstance(theirs, PackedLayer)
        assert ours.form == theirs.form and all(map(torch.equal, ours.tensors(), theirs.tensors()))
    behind, alone = done["knorm@0.5+kvtuner"].prefix[3], done["knorm@0.5+k8v2"].prefix[3]
    assert all(map(torch.equal, behind.tensors(), alone.tensors()))


def test_rows_say_the_tables_bits_and_bytes_and_one_pair_for_all_is_the_uniform_form(seed: int) -> None:
    prompt = make_prompt(seed, 120, "query_agnostic", num_questions=1)
    prompt = replace(prompt, questions=(replace(prompt.questions[0], max_new_tokens=3),))
    asked = variants(
        entry("kvtuner"),
        entry("kvtuner", [(4, 4)] * 5, label="uniform"),
        "int4",
        entry("keydiff@0.5+kvtuner"),
    )
    by_label = {row.label: row for row in Engine(tiny_model(seed).ours).run(prompt, asked)}
    assert all(isinstance(row, Generation) for row in by_label.values()), by_label
    ours = by_label["kvtuner"]
    assert ours.form.startswith("kvtuner(") and (ours.bits_k, ours.bits_v) == (24 / 5, 20 / 5)
    # A side of a slot: heads of 16 numbers, and four bytes of scale and minimum.
    of_slot = sum(16 * bits // 8 + 4 for pair in PAIRS for bits in pair)
    assert ours.read_bytes == 2 * 120 * of_slot
    uniform, int4 = by_label["uniform"], by_label["int4"]
    assert (uniform.token_ids, uniform.kl_mean, uniform.read_bytes) == (
        int4.token_ids,
        int4.kl_mean,
        int4.read_bytes,
    )
    assert uniform.form != int4.form == "int4" and by_label[FULL].form == "plain"


@pytest.mark.parametrize("name", ["knorm", "pyramidkv", "snapkv+adakv"])
def test_a_budget_of_bytes_is_not_exceeded(name: str, seed: int) -> None:
    model = tiny_model(seed).ours
    prompt = make_prompt(seed, 200, "query_agnostic", num_questions=1)
    window = {} if name == "knorm" else {"window_size": 8}
    asked = variants(entry(f"{name}+kvtuner", budget={"bytes": 0.1}, label="bytes", **window))
    done = compress_all(prefill(model, prompt.context_ids, needs_of(asked)), asked).done
    left_over = done[FULL].sizes.read * 0.1 - done["bytes"].sizes.read
    assert left_over >= 0
    if name == "knorm":
        of_slots = sum(16 * bits // 8 + 4 for pair in PAIRS for bits in pair) * 2
        assert left_over < of_slots + 5


def test_a_table_of_another_depth_costs_its_own_row(seed: int) -> None:
    model = tiny_model(seed).ours
    prompt = make_prompt(seed, 60, "query_agnostic", num_questions=1)
    asked = variants(entry("kvtuner", PAIRS[:4]), "int4")
    compression = compress_all(prefill(model, prompt.context_ids, needs_of(asked)), asked)
    assert "4 layers, and the model has 5" in compression.failed["kvtuner"].message
    assert "int4" in compression.done
