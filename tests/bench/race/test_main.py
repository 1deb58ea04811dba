"""The race's parts that decide a number: prompts, floor, table, a static cache's decoding, idle gaps, rates."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import pytest
import torch

from bench.engine.device_idle import Busy, Idle, Watched, idle_of
from bench.engine.equality import compare_one
from bench.race.__main__ import side_of
from bench.race.kvpress import PressRace
from bench.race.static_decoding import StaticDecoder
from bench.race.table import floor_s, markdown
from bench.random_llama import (
    bisect_run_length,
    kept_share,
    make_prompt,
    planted_ids,
    race_variants,
    random_llama,
    save_random_llama,
)
from bench.records import append, read, sources_digest
from bench.service.scaling import items_per_hour, saved_model
from bench.service.scaling import markdown as scaling_table
from kvmerger.models.loading import load_end_ids, load_info, load_tokenizer

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


def test_table_compares_the_service_too_and_says_where_the_rest_of_a_run_is() -> None:
    phases = {
        "prefill_shared_s": 1.0,
        "decode_shared_s": 1.5,
        "record_graph_shared_s": 0.4,
        "compress_s": 0.2,
    }
    service = {
        **FUSED, "seconds": 4.0, "aa_s": 0.5, "phases": phases, "commit": None, "sources": "5ca1ab1e",
        "kept": {"kvmerger_paper@0.5": 0.503, "knorm@0.5": 0.5},
    }  # fmt: skip
    kvpress = {"seconds": 40.0, "num_variants": 10, "peak_bytes": None, "num_planned": 13, "is_partial": True}
    shown = markdown([record("service", **service), record("kvpress-best", **kvpress)])
    assert "| 16,384 | kvpress-best ÷ service, per variant, 10 of 13 presses |  | 15.0 |" in shown
    assert "prefill 1.00, decode 1.50, compress 0.20, rest 0.80; threshold mode kept 50.3%" in shown
    assert "| 5ca1ab1e |" in shown
    assert "÷ fused" not in shown


def test_a_part_of_a_side_never_replaces_the_whole() -> None:
    part = record("fused", **{**FUSED, "seconds": 1.5, "num_variants": 5, "is_partial": True})
    whole, failed = record("fused", **FUSED), record("fused", error="gone")
    assert "| 5 | 1.50" in markdown([failed, part]).replace("5 of 5", "5")
    for lines in ([part, whole], [whole, part], [whole, failed]):
        assert "| 15 | 3.00 | 0.200 |" in markdown(lines)


@pytest.mark.parametrize("steepness", [0.02, 0.4, 1.0, 3.0])
def test_run_length_is_found_wherever_the_wanted_share_lies(steepness: float) -> None:
    tried = []

    def share_at(run_length: float) -> float:
        tried.append(run_length)
        return 0.35 + 0.65 * run_length**-steepness if steepness > 0.1 else 0.9 - steepness * run_length

    run_length, share = bisect_run_length(share_at)
    assert 0.45 <= share <= 0.55
    assert share == share_at(run_length)
    assert len(tried) <= 10


def test_run_length_nearest_to_the_wanted_share_is_taken_where_none_gives_it() -> None:
    assert bisect_run_length(lambda run_length: 0.6 + 1 / run_length) == (128.0, 0.6 + 1 / 128)
    assert bisect_run_length(lambda run_length: 0.4 / run_length) == (1.0, 0.4)


def test_a_side_may_be_asked_for_at_lengths_of_its_own() -> None:
    assert side_of("fused") == ("fused", ())
    assert side_of("kvpress-best@8k,500") == ("kvpress-best", (8192, 500))
    for wrong in ("fuse", "fused@", "fused@8x"):
        with pytest.raises(argparse.ArgumentTypeError):
            side_of(wrong)


class _Answers:
    """Presses that take no time, and a clock that is over after so many of them."""

    def __init__(self, num_in_time: int) -> None:
        self.seconds, self.num_in_time, self.asked = 1.0, num_in_time, []

    def left_s(self) -> float:
        return float(self.num_in_time - len(self.asked)) or -1.0

    def __call__(self, name: str, budget: float) -> None:
        self.asked.append((name, budget))
        if name == "h2o":
            raise ValueError("no room")


@pytest.mark.parametrize("num_in_time", [4, 99])
def test_every_press_is_kept_at_once_and_the_time_ends_the_side(num_in_time: int) -> None:
    model = random_llama("tiny", "cpu")
    answers, kept = _Answers(num_in_time), []
    race = PressRace(model, answers, lambda *_: None, lambda one: kept.append(json.loads(json.dumps(one))))
    found = race.run(answers)
    assert [one["num_variants"] + len(one["failures"]) for one in kept] == list(range(1, len(kept) + 1))
    assert all(one["is_partial"] for one in kept)
    assert len(kept) == len(answers.asked) == min(num_in_time, 13)
    assert found.get("is_partial", False) == (num_in_time == 4)
    assert set(found["failures"]) == ({"h2o@0.5", "h2o@0.35"} if num_in_time > 4 else set())


def test_records_are_read_back_and_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "race.jsonl"
    for number in range(2):
        append(path, {"number": number})
    append(None, {"number": 2})
    with path.open("a") as stream:
        stream.write('{"numb')
    assert read(path, path) == 2 * [{"number": 0}, {"number": 1}]
    with path.open("a") as stream:
        stream.write('\n{"number": 3}\n')
    with pytest.raises(json.JSONDecodeError):
        read(path)


def test_sources_digest_knows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "kvmerger").mkdir()
    digests = set()
    for name, text in (("a.py", "x"), ("a.py", "y"), ("b.py", "x"), ("notes.txt", "x")):
        (tmp_path / "kvmerger" / name).write_text(text)
        digests.add(sources_digest(tmp_path))
    assert len(digests) == 3


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


@pytest.mark.parametrize(("between", "verdict"), [(19, "met"), (20, "missed")])
def test_idle_time_between_items_is_held_against_its_target(between: int, verdict: str) -> None:
    record = Watched(Idle(span=600, idle=100, between=10) + Idle(400, 50, between - 10), 2, 1.5).record
    assert (record["idle_share"], record["between_share"]) == (0.15, between / 1000)
    assert record["verdict"] == verdict


def scaled(actors: int, items_per_hour: float, **others: object) -> dict[str, object]:
    counted = {"num_items": 40, "num_failed_rows": 0, "wall_s": 60.0, "model": "demo", "sources": "abc"}
    return {"actors": actors, "items_per_hour": items_per_hour, **counted, **others}


def test_sweeps_of_separate_commands_share_one_base_if_they_are_alike() -> None:
    shown = scaling_table(
        [
            scaled(2, 1000.0),
            scaled(2, 1800.0),  # the same again, later
            scaled(1, 1000.0),
            scaled(4, 3000.0, sources="def"),  # other code: not comparable
        ]
    )
    assert "| 2 | 40 | 0 | 60 | 1,800 | 90.0% |" in shown
    assert "| 1 | 40 | 0 | 60 | 1,000 | 100.0% |" in shown
    assert "| 4 | 40 | 0 | 60 | 3,000 | 100.0% |" in shown
    assert shown.count("of linear") == 2
    assert shown.endswith("No sweep of one actor is among them: linear is from 4.")


@pytest.mark.demo
def test_a_model_of_random_weights_is_saved_as_a_sweep_can_load_it(tmp_path: Path) -> None:
    save_random_llama("tiny", tmp_path / "random-tiny", "cpu", torch.float32)
    info = load_info(str(tmp_path / "random-tiny"))
    assert (info.num_layers, info.num_kv_heads) == (12, 2)
    assert len(load_tokenizer(info.name)) <= info.vocab_size, "every token has an embedding"
    assert not load_end_ids(info.name), "answers have their full length"


@pytest.mark.parametrize("model", ["demo", "org/random-8b", "random-unknown"])
def test_other_models_are_left_to_the_sweep(model: str, tmp_path: Path) -> None:
    assert saved_model(model, tmp_path) == model


def test_rate_leaves_out_each_actors_warm_up() -> None:
    finished_s = [100.0, 101.0, 130.0, 140.0, 142.0, 144.0, 146.0, 148.0, 150.0]
    assert items_per_hour(finished_s, actors=2) == pytest.approx(3600 * 5 / 10)
    with pytest.raises(ValueError, match="9 items are too few for 4 actors"):
        items_per_hour(finished_s, actors=4)
