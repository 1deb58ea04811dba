"""Rows that are cut down once in a while: against a slow loop, alone, forced, recorded, and what they hold."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from kvmerger import generation
from kvmerger.decoding.batch import Batch
from kvmerger.decoding.step_graphs import StepGraphs
from tests.fakes.tiny_models import TIE_LOGITS, tiny_model
from tests.kvmerger.decoding.test_acting_rows import (
    BUCKET,
    NUM_LAYERS,
    NUM_NEW_TOKENS,
    NUM_TOKENS,
    OTHERS,
    POLICIES,
    make_prompt,
    make_rows,
    positions_of,
)
from tests.kvmerger.decoding.test_step_graphs import Calls, check_same
from tests.slow.periodic import (
    PeriodicDecoder,
    expected_ahead,
    first_and_last,
    last_attention,
    unlike_the_mean,
)

TARGET, EVERY, NUM_HEADS = 10, 4, 2
PERIODIC = [
    {"name": "knorm+periodic", "budget": TARGET, "every": EVERY, "label": "knorm"},
    {"name": "snapkv+periodic", "budget": TARGET, "every": EVERY, "window_size": 3, "kernel_size": 3, "label": "snapkv"},
    {"name": "streaming_llm+periodic", "budget": TARGET, "every": EVERY, "label": "streaming"},
    {"name": "tova+periodic", "budget": TARGET, "every": EVERY, "ranking": "keydiff", "label": "keydiff"},
    {"name": "random+periodic", "budget": TARGET, "every": 2, "label": "random"},
    {"name": "lagkv+periodic", "budget": TARGET, "every": 7, "lag_size": 3, "label": "lagkv"},
]  # fmt: skip
TURNING = {
    "name": "triattention+periodic",
    "budget": TARGET,
    "every": EVERY,
    "window_size": 3,
    "label": "triattention",
}
# Not KNorm: a token that comes again has the same norm in the first layer, and which of the two stays is rounding's.
SLOW = {
    "snapkv": last_attention(3, 3),
    "streaming": first_and_last(4),
    "keydiff": unlike_the_mean,
    "triattention": expected_ahead(3, [10_000 ** (-pair / 8) for pair in range(8)]),
}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.mark.parametrize("label", SLOW)
def test_answers_are_those_of_the_slow_loop(label: str, seed: int) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    rows = make_rows(model, prompt, [policy for policy in [*PERIODIC, TURNING] if policy["label"] == label])
    batch = Batch(model.ours, prompt, dict(enumerate(rows)), BUCKET)
    answers = batch.decode()
    counters = dict(batch.counters_by_row)
    forced = batch.force({index: answer.token_ids for index, answer in answers.items()}, NUM_NEW_TOKENS)
    for index, row in enumerate(rows):
        with torch.inference_mode():
            slow = PeriodicDecoder(model.plain, prompt.context_ids, positions_of(row))
            position = NUM_TOKENS
            for token in prompt.questions[row.question_index].tail_ids:
                hidden = [slow.read(token, position)]
                position += 1
            slow.cut_if_due(EVERY, TARGET, SLOW[label])
            for token in answers[index].token_ids[:-1]:
                hidden.append(slow.read(token, position))
                slow.cut_if_due(EVERY, TARGET, SLOW[label])
                position += 1
        expected_TE = torch.stack(hidden)
        torch.testing.assert_close(forced[index].double(), expected_TE, atol=2e-3, rtol=1e-3)
        logits_TV = expected_TE @ model.plain.lm_head.weight.double().T
        chosen_T = logits_TV.gather(1, torch.tensor(answers[index].token_ids)[:, None]).squeeze(1)
        assert bool((logits_TV.amax(dim=1) - chosen_T < TIE_LOGITS).all()), "not greedy"
        assert counters[index]["num_decode_cuts"] == slow.num_cuts == 2
        assert counters[index]["num_decode_evicted"] == 2 * EVERY * NUM_HEADS * NUM_LAYERS


@dtypes
def test_fused_equals_alone_and_forcing_its_own_answer_repeats_it(dtype: torch.dtype, seed: int) -> None:
    model, prompt = tiny_model(seed, dtype, num_layers=NUM_LAYERS), make_prompt(seed)
    rows = dict(enumerate(make_rows(model, prompt, [*PERIODIC, *OTHERS[:1], *POLICIES[2:3]])))
    together = Batch(model.ours, prompt, rows, BUCKET)
    answers = together.decode()
    own = {index: answer.token_ids for index, answer in answers.items()}
    hidden = together.force(own, NUM_NEW_TOKENS)
    for index, row in rows.items():
        alone = Batch(model.ours, prompt, {index: row}, BUCKET)
        assert alone.decode()[index] == answers[index], row.label
        assert torch.equal(alone.force({index: own[index]}, NUM_NEW_TOKENS)[index], hidden[index]), row.label
    assert together.decode() == answers
    together.cache.check_integrity()
    assert not together.failures


@dtypes
def test_until_the_first_cut_a_row_is_on_its_shared_prefix_bit_for_bit(dtype: torch.dtype, seed: int) -> None:
    model, prompt = tiny_model(seed, dtype, num_layers=NUM_LAYERS), make_prompt(seed)
    policies = [{"name": "knorm", "budget": TARGET}, {**PERIODIC[0], "every": 64}]
    plain, rare = make_rows(model, prompt, policies)[::2]
    batches = [Batch(model.ours, prompt, {0: row}, BUCKET) for row in (plain, rare)]
    assert batches[0].decode() == batches[1].decode()
    assert not batches[1].has_acted(0)


@pytest.mark.parametrize("check_every", [1, 3])
def test_recorded_steps_give_every_bit_of_the_eager_loop(check_every: int, seed: int) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    prompt = replace(
        prompt, questions=tuple(replace(it, gold_ids=it.gold_ids[:4]) for it in prompt.questions)
    )
    rows = make_rows(model, prompt, [*PERIODIC, *OTHERS, *POLICIES[2:3]])
    check_same(model, prompt, dict(enumerate(rows)), StepGraphs(model.ours, Calls(), check_every))


def test_where_nothing_reads_queries_one_record_serves_all_stretches(seed: int) -> None:
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    rows = make_rows(model, prompt, [PERIODIC[0], PERIODIC[2], *OTHERS])
    graphs = StepGraphs(model.ours, Calls(), 2)
    batch = Batch(model.ours, prompt, dict(enumerate(rows)), BUCKET, graphs)
    batch.decode()
    assert graphs.num_recorded == 1
    assert all(batch.counters_by_row[index]["num_decode_cuts"] == 2 for index in range(4))


def test_a_row_holds_its_budget_and_a_period_at_most(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "LONG_ANSWER_TOKENS", 20)
    model, prompt = tiny_model(seed, num_layers=NUM_LAYERS), make_prompt(seed)
    prompt = replace(prompt, questions=tuple(replace(it, max_new_tokens=40) for it in prompt.questions))
    rows = make_rows(model, prompt, PERIODIC[:1])
    batch = Batch(model.ours, prompt, dict(enumerate(rows)), BUCKET)
    answers = batch.decode()
    token_bytes = batch.cache.tail_bytes_of(1)
    position_bytes = 4 * NUM_HEADS * NUM_LAYERS
    most = (TARGET + EVERY) * token_bytes + TARGET * position_bytes
    for index, answer in answers.items():
        trace = batch.trace_of(index, len(answer.token_ids), 0, 0)[1:]
        assert len(trace) == len(answer.token_ids) == 40
        live = [point.live_bytes for point in trace]
        assert max(live) == most
        assert min(live[10:]) == most - (EVERY - 1) * token_bytes
    # What is reserved of the tails is a period, too, and not the answer's forty tokens.
    assert batch.cache.tail_capacity == EVERY + 1


def test_a_long_trace_keeps_every_corner_and_loses_nothing_between() -> None:
    points = [
        generation.MemoryPoint(step, "decode", 7 * (step % 9), 100 + step // 400) for step in range(2000)
    ]
    kept = generation.corners(points)
    assert generation.corners(points[:512]) == tuple(points[:512])
    assert len(kept) < len(points) / 3 and kept[0] == points[0] and kept[-1] == points[-1]
    between = iter(kept[1:])
    before, after = kept[0], next(between)
    for point in points[:-1]:
        if point.step >= after.step:
            before, after = after, next(between)
        share = (point.step - before.step) / (after.step - before.step)
        line = before.live_bytes + share * (after.live_bytes - before.live_bytes)
        assert line == pytest.approx(point.live_bytes)


def test_the_draw_of_a_random_ranking_is_another_at_each_cut(seed: int) -> None:
    rng = random.Random(seed)
    model, prompt = tiny_model(rng.randrange(1000), num_layers=1), make_prompt(seed)
    prompt = replace(prompt, questions=(replace(prompt.questions[1], max_new_tokens=60),))
    rows = make_rows(model, prompt, [{**PERIODIC[4], "every": 10}])
    batch = Batch(model.ours, prompt, {0: rows[0]}, BUCKET)
    batch.decode()
    (layer,) = (held.plain() for held in batch.cache.prefix_of(0))
    # The same draw each time would keep the same places, and never anything from the middle cuts.
    steps = {(int(position) - NUM_TOKENS) // 10 for position in layer.position_S if position >= NUM_TOKENS}
    assert len(steps) > 1
