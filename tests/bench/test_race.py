"""The race's parts that decide a number: prompts, floor, table, a static cache's decoding, idle gaps, rates."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from bench.device_idle import Busy, Idle, idle_of
from bench.equality import compare_one
from bench.race_table import floor_s, markdown
from bench.random_llama import kept_share, make_prompt, planted_ids, race_variants, random_llama
from bench.scaling import items_per_hour
from bench.static_decoding import StaticDecoder

BARE = {"seconds": 0.5, "weight_bytes": 10e9, "bytes_per_s": 2e12, "peak_bytes": None, "num_variants": 1}
FUSED = {
    "seconds": 3.0, "num_variants": 15, "num_steps": 64, "kv_bytes": 6e9, "peak_bytes": 2**34, "aa_s": 0.25,
    "failures": {},
}  # fmt: skip


def record(side: str, **measured: object) -> dict[str, object]:
    at = {"side": side, "length": 16384, "device": "a device", "versions": {"torch": "9.9"}}
    return {**at, **measured}


def test_planted_ids_repeat_as_often_as_asked() -> None:
    ids = planted_ids(20_000, 2.5, vocab_size=100_000)
    num_runs = sum(left != right for left, right in itertools.pairwise(ids))
    assert len(ids) == 20_000
    assert len(ids) / num_runs == pytest.approx(2.5, rel=0.03)


def test_longer_runs_let_threshold_mode_keep_less(seed: int) -> None:
    model = random_llama("tiny", "cpu", torch.float32, seed)
    shares = [
        kept_share(model, make_prompt(model, 300, run_length, 1, seed)) for run_length in (1.0, 2.0, 8.0)
    ]
    assert 1 > shares[0] > shares[1] > shares[2] > 0


def test_race_has_15_variants_with_the_full_cache() -> None:
    assert len({variant.label for variant in race_variants()}) == 14


def test_floor_is_a_prefill_and_every_byte_of_each_step() -> None:
    assert floor_s(BARE, FUSED) == pytest.approx(0.5 + 64 * 16e9 / 2e12)


def test_table_compares_seconds_per_variant_and_keeps_failures_apart() -> None:
    shown = markdown(
        [
            record("floor", **BARE),
            record("fused", **FUSED),
            record("isolated", error="OutOfMemoryError: too much"),
            record(
                "kvpress",
                seconds=52.0,
                num_variants=13,
                peak_bytes=None,
                failures={"h2o@0.5": "no room"},
                seconds_each={"full": 2.0, "knorm@0.5": 4.0, "h2o@0.35": 46.0},
            ),
        ]
    )
    assert "| 16,384 | kvpress ÷ fused, per variant | ≥ 25 | 20.0 |" in shown
    assert "| 16,384 | the same, its H2O left out | | 15.0 |" in shown
    assert "| 16,384 | fused ÷ floor (1.01 s) | ≤ 1.25 | 2.96 |" in shown
    assert "h2o@0.5: no room" in shown
    assert "OutOfMemoryError: too much" in shown
    assert "isolated ÷ fused" not in shown


def test_a_later_line_replaces_an_earlier_one() -> None:
    lines = [record("fused", **FUSED), record("fused", **{**FUSED, "seconds": 1.5})]
    shown = markdown(json.loads(json.dumps(lines)))
    assert "| 15 | 1.50 | 0.100 |" in shown
    assert "3.00" not in shown


def test_static_decoding_gives_the_tokens_of_a_growing_cache(seed: int) -> None:
    from transformers import DynamicCache

    model = random_llama("tiny", "cpu", torch.float32, seed)
    module = model.module
    module.set_attn_implementation("sdpa")
    prompt = make_prompt(model, 90, 2.0, 6, seed)
    ids_BN = torch.tensor([prompt.context_ids, prompt.context_ids[::-1]])
    with torch.inference_mode():
        expected_BT = module.generate(ids_BN, max_new_tokens=6, do_sample=False)[:, 90:]
        cache = DynamicCache()
        first = module(input_ids=ids_BN, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
        decoder = StaticDecoder(module, 2, 90, 6)
        for _ in range(2):  # a decoder is used again for the next press
            assert torch.equal(decoder.decode(cache, first, 90), expected_BT)


def test_rows_alone_have_the_bits_they_have_together(seed: int) -> None:
    model = random_llama("tiny", "cpu", torch.float32, seed)
    with torch.inference_mode():
        counts = compare_one(model, make_prompt(model, 100, 2.0, 4, seed), race_variants()[:2])
    assert counts["rows"] == 4
    assert counts["alone differs"] == counts["again differs"] == 0
    assert counts["bucket 1: positions"] == 4


def test_idle_time_is_what_no_stretch_covers() -> None:
    stretches = [
        Busy(0, 1, is_marker=True),
        Busy(3, 10),  # 2 idle after the marker: between items
        Busy(5, 7),  # inside another
        Busy(14, 20),  # 4 idle within the item
        Busy(25, 26, is_marker=True),  # 5 idle before the marker: between items
    ]
    assert idle_of(reversed(stretches)) == Idle(span=26, idle=11, between=7)


def test_rate_leaves_out_each_actors_warm_up() -> None:
    finished_s = [100.0, 101.0, 130.0, 140.0, 142.0, 144.0, 146.0, 148.0, 150.0]
    assert items_per_hour(finished_s, actors=2) == pytest.approx(3600 * 5 / 10)
    with pytest.raises(ValueError, match="9 items are too few for 4 actors"):
        items_per_hour(finished_s, actors=4)
