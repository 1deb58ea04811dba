"""Policies that spend bytes, all through the engine: what is held, what rows say of it, and who may be like whom."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kvmerger import Policy, keep_highest
from kvmerger.cache.forms.widths import Widths
from kvmerger.engine.budgets import shape_of
from kvmerger.engine.compress import compress_all
from kvmerger.engine.fused import needs_of
from kvmerger.engine.groups import expected_bytes
from kvmerger.generation import Generation
from kvmerger.prefill.prefill import prefill
from kvmerger.variants import FULL
from tests.fakes.tiny_models import tiny_model
from tests.kvmerger.engine.test_engine import make_prompt
from tests.kvmerger.engine.test_stored import run, variants

RDKV = {"name": "rdkv", "window_size": 8}


def rows(seed: int, *entries: dict, **more: str) -> dict[str, Generation]:
    by_label = run(seed, *entries, **more)
    assert all(isinstance(row, Generation) for row in by_label.values()), by_label
    return by_label


@dataclass(frozen=True)
class ChoosesWidthsForNobody(Policy):
    """Says in which widths slots are stored, and has no form that reads them."""

    def compress(self, layer, evidence, budget):
        kept = keep_highest(layer, torch.zeros(layer.num_heads, evidence.num_tokens), budget)
        v_S = torch.full((kept.num_slots,), 4, dtype=torch.uint8)
        k_HD = torch.full((kept.num_heads, kept.head_dim), 4, dtype=torch.uint8)
        return type(kept)(kept.k_SD, kept.v_SD, kept.position_S, kept.num_slots_H, widths=Widths(v_S, k_HD))


def test_rows_say_the_bytes_and_the_mean_bits_of_what_is_held(seed: int) -> None:
    by_label = rows(seed, *({**RDKV, "budget": {"bytes": share}} for share in (0.05, 0.1, 1.0)))
    full_bytes = by_label[FULL].read_bytes
    for share in (0.05, 0.1):
        row = by_label[f"rdkv@bytes:{share}"]
        assert row.form == "mixed_widths"
        assert full_bytes * share * 0.8 < row.read_bytes <= full_bytes * share
        assert row.kv_bytes == row.read_bytes + row.position_bytes
        assert 1 < row.bits_k < 8 and 2 <= row.bits_v < 8
        assert row.asked_slots is None and row.degenerate_reason is None
        assert "num_dropped_channels" in row.counters
        assert len({count for slots_H in row.slots_LH for count in slots_H}) > 1
    whole = by_label["rdkv@bytes:1.0"]
    assert (whole.form, whole.kl_mean, whole.read_bytes) == ("plain", 0.0, full_bytes)
    assert whole.degenerate_reason == "kept every slot: its form holds all of them within the budget"


def test_all_slots_in_few_bits_are_no_degenerate_row(seed: int) -> None:
    row = rows(seed, {**RDKV, "budget": {"bytes": 0.4}})["rdkv@bytes:0.4"]
    full = 300 * 5 * 2
    assert sum(map(sum, row.slots_LH)) == full and row.degenerate_reason is None


def test_bytes_like_anothers_work_both_ways_and_slots_like_its_too(seed: int) -> None:
    ours, like = "rdkv@bytes:0.1", "{bytes: {like: rdkv@bytes:0.1}}"
    by_label = rows(
        seed,
        {**RDKV, "budget": {"bytes": 0.1}},
        {"name": "snapkv+int4", "window_size": 8, "budget": {"bytes": {"like": ours}}, "label": like},
        {"name": "snapkv", "window_size": 8, "budget": {"like": ours}, "label": "slots"},
        {**RDKV, "budget": {"bytes": {"like": like}}, "label": "back"},
    )
    assert by_label["back"].read_bytes <= by_label[like].read_bytes <= by_label[ours].read_bytes
    assert by_label["slots"].slots_LH == by_label[ours].slots_LH


def test_isolated_runs_hold_the_same_and_answer_alike(seed: int) -> None:
    entry = {**RDKV, "budget": {"bytes": 0.1}}
    fused, isolated = (rows(seed, entry, execution=it)["rdkv@bytes:0.1"] for it in ("fused", "isolated"))
    assert (fused.slots_LH, fused.kv_bytes) == (isolated.slots_LH, isolated.kv_bytes)
    assert fused.kl_mean == pytest.approx(isolated.kl_mean, abs=1e-3)


def test_a_rule_may_act_behind_it(seed: int) -> None:
    entry = {**RDKV, "name": "rdkv+streaming_llm_decode", "budget": {"bytes": 0.1}}
    (row,) = (row for label, row in rows(seed, entry).items() if label.startswith("rdkv"))
    assert row.form == "mixed_widths"


def test_widths_that_no_form_reads_are_a_mistake_with_a_name(seed: int) -> None:
    model, prompt = tiny_model(seed), make_prompt(seed, 60, "query_agnostic", num_questions=1)
    built = variants({"name": f"{__name__}:ChoosesWidthsForNobody", "budget": 0.5, "label": "mine"})
    failed = compress_all(prefill(model.ours, prompt.context_ids, needs_of(built)), built).failed["mine"]
    assert "it chooses widths and has no form that stores slots in them" in failed.message


def test_memory_is_planned_for_the_bytes_it_is_given(seed: int) -> None:
    model, prompt = tiny_model(seed), make_prompt(seed, 300, "query_agnostic", num_questions=1)
    built = variants(*({**RDKV, "budget": {"bytes": share}} for share in (0.05, 0.1, 0.3)))
    prefilled = prefill(model.ours, prompt.context_ids, needs_of(built))
    held = {label: done.sizes for label, done in compress_all(prefilled, built).done.items()}
    for label, num_bytes in expected_bytes(built, prompt, shape_of(prefilled), 1).items():
        # Where the prompt decides, as many positions as there are tokens.
        assert held[label].held <= num_bytes <= 1.1 * held[label].read + held[FULL].positions
