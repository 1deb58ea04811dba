"""Prompts with nothing to compress: everything is kept, and what acts while answering bounds what is held."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from kvmerger import generation
from kvmerger.engine import Engine
from kvmerger.generation import Generation, Prompt, Question, VariantFailure
from kvmerger.limits import Limits
from tests.fakes.tiny_models import VOCAB_SIZE, tiny_model
from tests.kvmerger.engine.test_acting_runs import NUM_HEADS, NUM_LAYERS, built, by_key

NUM_TOKENS, NUM_TAIL, NUM_NEW_TOKENS = 20, 2, 16
HELD = NUM_TOKENS + NUM_TAIL
RULES = [
    {"name": "streaming_llm_decode", "budget": 26, "label": "streaming"},
    {"name": "snapkv+h2o_decode", "budget": 0.75, "recent": 5, "label": "h2o"},
    {"name": "tova_decode", "budget": {"bytes": 0.75}, "label": "tova"},
    {"name": "cam", "budget": 24, "num_heirs": 4, "label": "cam"},
]  # fmt: skip
SLOTS = {"streaming": 26, "h2o": 28, "tova": 28, "cam": 24}
KEEP = [
    {"name": "snapkv", "budget": 0.1},
    {"name": "kvzip", "budget": 0.5},
    {"name": "knorm+int4", "budget": 3},
]


def free_prompt(seed: int) -> Prompt:
    rng = random.Random(seed)
    ids = [rng.randrange(VOCAB_SIZE) for _ in range(HELD + 4)]
    question = Question(tuple(ids[NUM_TOKENS:HELD]), tuple(ids[HELD:]), NUM_NEW_TOKENS)
    return Prompt(tuple(ids[:NUM_TOKENS]), (question,), is_context_free=True)


@pytest.fixture(scope="module")
def results(seed: int) -> dict[str, Generation]:
    engine = Engine(tiny_model(seed, num_layers=NUM_LAYERS).ours)
    found = by_key(engine.run(free_prompt(seed), built(*RULES, *KEEP)))
    return {label: row for (label, _), row in found.items()}


def test_every_variant_keeps_the_whole_prompt(results) -> None:
    full = results["full"]
    for label, row in results.items():
        if label == "no_context":
            continue
        assert row.slots_LH == ((NUM_TOKENS,) * NUM_HEADS,) * NUM_LAYERS
        assert row.form == "plain"
        # Scores that a rule starts from are held beside the keys and values.
        assert 0 <= row.kv_bytes - full.kv_bytes <= 4 * NUM_TOKENS * NUM_HEADS * NUM_LAYERS


def test_policies_without_a_rule_answer_as_the_full_cache_does_and_say_so(results) -> None:
    for label in ("snapkv@0.1", "kvzip@0.5", "knorm@3+int4"):
        row = results[label]
        assert row.token_ids == results["full"].token_ids
        assert row.kl_mean == pytest.approx(0, abs=1e-9)
        assert "no context to compress" in row.degenerate_reason


def test_a_rule_holds_as_many_slots_as_its_budget_says_prompt_and_answer_together(results) -> None:
    for label, num_slots in SLOTS.items():
        row = results[label]
        assert row.counters["num_decode_slots"] == num_slots * NUM_HEADS * NUM_LAYERS
        # The last token is never read.
        num_left = max(0, HELD + len(row.token_ids) - 1 - num_slots)
        assert row.counters["num_decode_evicted"] == num_left * NUM_HEADS * NUM_LAYERS
        assert row.is_degenerate == (num_left == 0 and not row.num_fidelity_tokens > num_slots - HELD + 1)


def test_isolated_and_fused_runs_say_the_same(results, seed: int) -> None:
    engine = Engine(tiny_model(seed, num_layers=NUM_LAYERS).ours)
    alone = by_key(engine.run(free_prompt(seed), built(*RULES[:2]), execution="isolated"))
    for label in ("streaming", "h2o", "full"):
        assert alone[label, 0].token_ids == results[label].token_ids
        assert alone[label, 0].slots_LH == results[label].slots_LH


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "h2o_decode", "budget": HELD - 1, "recent": 5}, "the prompt of 22 tokens"),
        ({"name": "h2o_decode", "budget": 30}, "needs 32 slots"),
        ({"name": "h2o_decode", "budget": {"like": "full"}}, "give a number"),
    ],
    ids=["below the prompt", "below what stays", "like"],
)
def test_a_budget_that_cannot_bound_the_answer_fails_its_own_row(seed: int, entry, words) -> None:
    engine = Engine(tiny_model(seed, num_layers=NUM_LAYERS).ours)
    found = {
        row.label: row for row in engine.run(free_prompt(seed), built({**entry, "label": "bad"}, *KEEP[:1]))
    }
    assert isinstance(found["bad"], VariantFailure) and words in found["bad"].message
    assert isinstance(found["snapkv@0.1"], Generation)


LONG = [
    # Not knorm: keys of one token repeated have one norm but for rounding, and a batch rounds as it likes.
    {"name": "keydiff+periodic", "budget": 24, "every": 6, "label": "periodic"},
    {"name": "snapkv+periodic", "budget": 12, "every": 6, "window_size": 4, "label": "below the prompt"},
    {"name": "h2o_decode", "budget": 24, "recent": 5, "label": "one by one"},
    {"name": "knorm", "budget": 5, "label": "unbounded"},
]  # fmt: skip


@pytest.fixture(scope="module")
def long_results(seed: int) -> dict[str, dict[str, Generation]]:
    """A long answer, fused and each alone; `LONG_ANSWER_TOKENS` is far below it.

    In float64: a batch's rounding in float32 decides one of some hundred near ties between scores.
    """
    prompt = free_prompt(seed)
    prompt = replace(prompt, questions=(replace(prompt.questions[0], max_new_tokens=40),))
    engine = Engine(tiny_model(seed, torch.float64, num_layers=NUM_LAYERS).ours)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "LONG_ANSWER_TOKENS", 20)
        found = {
            execution: by_key(engine.run(prompt, built(*LONG), execution=execution))
            for execution in ("fused", "isolated")
        }
    return {execution: {label: row for (label, _), row in rows.items()} for execution, rows in found.items()}


@pytest.mark.parametrize("execution", ["fused", "isolated"])
def test_rows_that_bound_what_they_hold_reserve_no_tail_for_the_whole_answer(long_results, execution) -> None:
    rows = long_results[execution]
    token_bytes = rows["full"].kv_bytes // NUM_TOKENS
    for label, most in (("periodic", 24 + 6), ("below the prompt", NUM_TOKENS + 6), ("one by one", 24)):
        decoding = rows[label].trace[1:]
        assert len(decoding) == len(rows[label].token_ids) == 40
        # The queries that a ranking keeps, and scores, take some more.
        assert max(point.live_bytes for point in decoding) <= (most + 6) * token_bytes
        # The prompt to start again, what is held, and a tail of what the budget leaves before the first cut.
        assert max(point.reserved_bytes for point in decoding) <= (NUM_TOKENS + 24 + 16) * token_bytes
    assert max(point.reserved_bytes for point in rows["unbounded"].trace) >= (HELD + 40) * token_bytes * 0.9


def test_long_answers_are_said_and_compared_alike_in_fused_and_isolated_runs(long_results) -> None:
    fused, isolated = long_results["fused"], long_results["isolated"]
    assert fused.keys() == isolated.keys()
    for label, row in fused.items():
        alone = isolated[label]
        assert row.num_fidelity_tokens == alone.num_fidelity_tokens
        assert row.counters.get("num_decode_cuts") == alone.counters.get("num_decode_cuts")
        if row.token_ids == alone.token_ids:  # another bucket may turn a token
            assert row.kl_mean == pytest.approx(alone.kl_mean, abs=1e-4)
    assert fused["periodic"].counters["num_decode_cuts"] == (HELD + 39 - 24) // 6
    assert fused["unbounded"].kl_mean == pytest.approx(0, abs=1e-9)
    assert fused["periodic"].kl_mean > 0


def test_all_rows_are_compared_along_a_share_of_a_long_answer() -> None:
    limits = Limits()
    assert [limits.fidelity_tokens(count) for count in (64, 1024, 2048, 8192, 32768)] == [
        128,
        128,
        512,
        1024,
        1024,
    ]
